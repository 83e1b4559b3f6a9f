//! A tokenizer for any prompt: byte-level BPE without merges, so one token a byte.

use crate::model::{gguf::Header, synth::Arch};

const NORMAL: i32 = 1;
const CONTROL: i32 = 3;

/// After the 256 bytes: the ids of begin and end of text.
const SPECIAL: [(&str, &str); 2] =
    [("bos_token_id", "<|endoftext|>"), ("eos_token_id", "<|im_end|>")];

/// The pre-tokenizer of an architecture.
pub(super) fn pre(arch: &str) -> &'static str {
    if arch == Arch::Llama.name() { "llama-bpe" } else { "qwen2" }
}

/// Sets the tokenizer's keys for a vocabulary of that size.
pub(super) fn set_keys(pre: &str, n_vocab: usize, header: &mut Header) {
    let mut tokens: Vec<String> = (0..=255u8).map(|byte| byte_character(byte).into()).collect();
    let mut types = vec![NORMAL; tokens.len()];
    for (key, text) in SPECIAL {
        header.set_u32(&format!("tokenizer.ggml.{key}"), tokens.len() as u32);
        tokens.push(text.to_string());
        types.push(CONTROL);
    }
    // Readable when generated, and never matched: the pre-tokenizers part letters from digits.
    let space = byte_character(b' ');
    tokens.extend((tokens.len()..n_vocab).map(|id| format!("{space}w{id}")));
    types.resize(tokens.len(), NORMAL);
    header.set_string("tokenizer.ggml.model", "gpt2");
    header.set_string("tokenizer.ggml.pre", pre);
    header.set_strings("tokenizer.ggml.tokens", &tokens);
    header.set_i32s("tokenizer.ggml.token_type", &types);
    header.set_strings("tokenizer.ggml.merges", &[]);
    header.set_bool("tokenizer.ggml.add_bos_token", false);
}

/// The character that GPT-2's byte-level alphabet gives a byte: itself where it is printable, else
/// one from 256 on.
fn byte_character(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&other| !printable(other)).count() as u32;
    char::from_u32(256 + before).expect("256 to 323 are characters")
}
