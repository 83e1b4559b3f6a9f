//! Random numbers that are the same on every machine.

/// The number at `index` of the splitmix64 sequence that starts at a key.
pub fn splitmix64(key: u64, index: u64) -> u64 {
    let z = key.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The key of a purpose's own sequence, such as the elements of a tensor.
pub fn key(seed: u64, purpose: &str) -> u64 {
    let hash = blake3::hash(format!("{seed}/{purpose}").as_bytes());
    u64::from_le_bytes(hash.as_bytes()[..8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_number_is_the_one_that_its_authors_give() {
        assert_eq!(splitmix64(1_234_567, 0), 6_457_827_717_110_365_317);
    }
}
