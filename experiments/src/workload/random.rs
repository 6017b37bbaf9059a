//! Random numbers of a workload: one ChaCha8 stream per (seed, purpose), so that a change of one
//! distribution leaves every other draw as it was.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a stream of random numbers is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Gaps between arrivals.
    Arrival = 1,
    /// Prompt lengths.
    Prompt = 2,
    /// Output lengths.
    Output = 3,
    /// Which shared prefix a request has.
    Prefix = 4,
    /// Which tenant a request belongs to.
    Tenant = 5,
    /// Where within its tick a request of a trace arrives.
    Spread = 6,
    /// Where and when faults strike; the entry's number is added.
    Faults = 1 << 16,
}

/// One stream of random numbers.
#[derive(Clone, Debug)]
pub struct Random(ChaCha8Rng);

impl Random {
    /// The stream of `purpose` under `seed`.
    pub fn new(seed: u64, purpose: Purpose) -> Self {
        let mut key = *b"........kvrail workload stream..";
        key[..8].copy_from_slice(&seed.to_le_bytes());
        let mut rng = ChaCha8Rng::from_seed(key);
        rng.set_stream(purpose as u64);
        Random(rng)
    }

    /// The stream of the n-th thing with this purpose.
    pub fn nth(seed: u64, purpose: Purpose, n: u64) -> Self {
        let mut random = Self::new(seed, purpose);
        random.0.set_stream((purpose as u64).wrapping_add(n));
        random
    }

    /// Uniform over [0, 1), a multiple of 2^-53.
    pub fn unit(&mut self) -> f64 {
        (self.0.next_u64() >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
    }

    /// Uniform over 0 .. `bound` (0 when `bound` is 0). The bias is below `bound` / 2^64.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.0.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// Exponential with mean 1.
    pub fn exponential(&mut self) -> f64 {
        -libm::log(1.0 - self.unit())
    }

    /// Normal with mean 0 and deviation 1 (Box and Muller 1958; the second value is not used, so that
    /// every draw takes the same number of words).
    pub fn normal(&mut self) -> f64 {
        let radius = libm::sqrt(2.0 * self.exponential());
        radius * libm::cos(2.0 * core::f64::consts::PI * self.unit())
    }

    /// Gamma with the given shape and scale 1 (Marsaglia and Tsang 2000; below shape 1 by their boost).
    pub fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let boost = libm::pow(1.0 - self.unit(), 1.0 / shape);
            return self.gamma(shape + 1.0) * boost;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / libm::sqrt(9.0 * d);
        loop {
            let x = self.normal();
            let v = 1.0 + c * x;
            if v <= 0.0 {
                continue;
            }
            let v = v * v * v;
            let u = 1.0 - self.unit();
            if libm::log(u) < 0.5 * x * x + d - d * v + d * libm::log(v) {
                return d * v;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(mut draw: impl FnMut() -> f64) -> (f64, f64) {
        let n = 20_000;
        let values: Vec<f64> = (0..n).map(|_| draw()).collect();
        let mean = values.iter().sum::<f64>() / n as f64;
        let variance = values.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n as f64;
        (mean, variance.sqrt())
    }

    #[test]
    fn distributions_have_their_moments() {
        let mut random = Random::new(7, Purpose::Arrival);
        let (mean, deviation) = moments(|| random.exponential());
        assert!((mean - 1.0).abs() < 0.03 && (deviation - 1.0).abs() < 0.05, "{mean} {deviation}");
        let (mean, deviation) = moments(|| random.normal());
        assert!(mean.abs() < 0.03 && (deviation - 1.0).abs() < 0.03, "{mean} {deviation}");
        for shape in [0.25, 1.0, 4.0] {
            let (mean, deviation) = moments(|| random.gamma(shape));
            assert!((mean / shape - 1.0).abs() < 0.06, "shape {shape}: mean {mean}");
            assert!((deviation / shape.sqrt() - 1.0).abs() < 0.08, "shape {shape}: deviation {deviation}");
        }
    }

    #[test]
    fn streams_differ_by_seed_and_purpose_and_repeat() {
        let first = |seed, purpose| Random::new(seed, purpose).below(u64::MAX);
        assert_eq!(first(1, Purpose::Prompt), first(1, Purpose::Prompt));
        assert_ne!(first(1, Purpose::Prompt), first(2, Purpose::Prompt));
        assert_ne!(first(1, Purpose::Prompt), first(1, Purpose::Output));
    }
}
