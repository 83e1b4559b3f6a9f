//! Files damaged as disks, networks and converters damage them, and a little worse.

/// Random numbers of a seed (splitmix64).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Values that lengths and sizes should not have.
const ABSURD: [u64; 8] = [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 1 << 40, 1 << 63, u64::MAX];

/// Damages bytes in one of six ways; what is done is said. The first `header` bytes are what readers trust.
pub fn damage(bytes: &mut Vec<u8>, header: usize, random: &mut Random) -> String {
    let header = header.min(bytes.len());
    if header < 16 {
        bytes.clear();
        return "emptied".to_string();
    }
    let at = random.below(header - 8);
    match random.below(6) {
        0 => {
            bytes[at] ^= 1 << random.below(8);
            format!("a bit at {at}")
        }
        1 => {
            let n = 1 + random.below(8);
            let noise = random.next().to_le_bytes();
            bytes[at..at + n].copy_from_slice(&noise[..n]);
            format!("{n} bytes at {at}")
        }
        2 => {
            let value = ABSURD[random.below(ABSURD.len())];
            bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            format!("{value} at {at}")
        }
        3 => {
            // Half of the cuts are in the header.
            let length = if random.below(2) == 0 { at } else { random.below(bytes.len()) };
            bytes.truncate(length);
            format!("cut to {length}")
        }
        4 => {
            let n = 1 + random.below(16);
            bytes.drain(at..(at + n).min(header));
            format!("{n} bytes out at {at}")
        }
        _ => {
            let n = 1 + random.below(16);
            bytes.splice(at..at, std::iter::repeat_n(0x41, n));
            format!("{n} bytes in at {at}")
        }
    }
}

/// Types of a GGUF's values.
const U32: u32 = 4;
const F32: u32 = 6;

/// The numbers of a GGUF's header, each with where its value is.
pub fn numbers(gguf: &[u8]) -> Vec<(String, u32, usize)> {
    let word = |at: usize| u32::from_le_bytes(gguf[at..at + 4].try_into().unwrap());
    let long = |at: usize| u64::from_le_bytes(gguf[at..at + 8].try_into().unwrap()) as usize;
    let size = |kind: u32| [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8][kind as usize];
    let (mut at, mut found) = (24, Vec::new());
    for _ in 0..long(16) {
        let n = long(at);
        let key = String::from_utf8_lossy(&gguf[at + 8..at + 8 + n]).into_owned();
        at += 8 + n;
        let kind = word(at);
        at += 4;
        match kind {
            8 => at += 8 + long(at),
            9 => {
                let (of, n) = (word(at), long(at + 4));
                at += 12;
                for _ in 0..n {
                    at += if of == 8 { 8 + long(at) } else { size(of) };
                }
            }
            _ => {
                found.push((key, kind, at));
                at += size(kind);
            }
        }
    }
    found
}

/// Gives a number of a GGUF an absurd value; what is done is said.
pub fn absurd_number(gguf: &mut [u8], random: &mut Random) -> String {
    let mut numbers = numbers(gguf);
    numbers.retain(|(_, kind, _)| [U32, F32].contains(kind));
    let (key, kind, at) = numbers[random.below(numbers.len())].clone();
    let (bits, name) = if kind == F32 {
        let values = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -1.0, 1e38, 1e-45];
        let value = values[random.below(values.len())];
        (value.to_bits(), value.to_string())
    } else {
        let values = [0, 1, 3, 7, 513, 65_537, 0x7fff_ffff, 0x8000_0000, u32::MAX];
        let value = values[random.below(values.len())];
        (value, value.to_string())
    };
    gguf[at..at + 4].copy_from_slice(&bits.to_le_bytes());
    format!("{key} = {name}")
}
