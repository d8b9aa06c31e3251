//! The one source of chance of a case.

/// xorshift64*
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x2545_F491_4F6C_DD1D);
        random.0 |= 1;
        // Neighbouring seeds part ways within a few draws.
        for _ in 0..8 {
            random.below(2);
        }
        random
    }

    /// 0 to `bound - 1`.
    pub fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % bound.max(1)
    }

    pub fn within(&mut self, range: std::ops::RangeInclusive<usize>) -> usize {
        range.start() + self.below(range.end() - range.start() + 1)
    }

    /// True once in `bound` draws; never if `bound` is 0.
    pub fn one_in(&mut self, bound: usize) -> bool {
        bound > 0 && self.below(bound) == 0
    }
}
