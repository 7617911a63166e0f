//! Chance that is the same everywhere and in every version: the same seed gives the same telemetry.
//!
//! SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014), and only arithmetic that every
//! machine rounds alike.

/// A source of chance.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Another source, independent of what this one gives from now on.
    pub(crate) fn split(&mut self) -> Self {
        Self(self.next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// 0 to 1, without 1.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    pub(crate) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// 0 to `below`, without it; 0 for 0.
    pub(crate) fn below(&mut self, below: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(below)) >> 64) as u64
    }

    /// Whether something happens that happens with this probability.
    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        self.unit() < probability
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T; 4]) -> T {
        from[self.below(4) as usize]
    }

    /// Around 0, nearly normal, with a deviation of 1.
    pub(crate) fn noise(&mut self) -> f64 {
        const SQRT_3: f64 = 1.732_050_807_568_877_2;
        (self.unit() + self.unit() + self.unit() + self.unit() - 2.0) * SQRT_3
    }

    /// How often something happened that happens `mean` times on average.
    pub(crate) fn count(&mut self, mean: f64) -> u64 {
        let mean = if mean < 8.0 { mean } else { (mean + self.noise() * mean.sqrt()).max(0.0) };
        let whole = mean.floor();
        whole as u64 + u64::from(self.chance(mean - whole))
    }

    /// What many things of a mean size come to, in whole numbers.
    pub(crate) fn sum(&mut self, things: u64, mean: f64) -> u64 {
        if things == 0 {
            return 0;
        }
        let things = things as f64;
        let sum = things * mean * (1.0 + 0.6 * self.noise() / things.sqrt());
        sum.max(things).round() as u64
    }
}
