//! Mean and percentiles.

use serde::Serialize;

/// Mean and percentiles of a set of values; all 0 for an empty set.
///
/// Percentiles are by nearest rank: p of n values in ascending order is the value at rank `ceil(p * n / 100)`,
/// counted from 1, so that each is a value that occurred.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Arithmetic mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
}

impl Stats {
    /// Of these values, in any order.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        if values.is_empty() {
            return Stats::default();
        }
        // Sorted before the sum: the mean does not depend on the order either.
        values.sort_unstable_by(f64::total_cmp);
        let rank = |p: usize| values[(p * values.len()).div_ceil(100).saturating_sub(1)];
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        Stats { mean, p50: rank(50), p90: rank(90), p99: rank(99) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nearest_rank() {
        let stats = Stats::of((1..=100).rev().map(f64::from).collect());
        assert_eq!(stats, Stats { mean: 50.5, p50: 50.0, p90: 90.0, p99: 99.0 });
        let stats = Stats::of(vec![7.0]);
        assert_eq!(stats, Stats { mean: 7.0, p50: 7.0, p90: 7.0, p99: 7.0 });
        assert_eq!(Stats::of(vec![2.0, 1.0]).p50, 1.0);
    }

    proptest! {
        #[test]
        fn a_percentile_has_its_share_below(values in prop::collection::vec(0.0..1e6_f64, 1..300)) {
            let stats = Stats::of(values.clone());
            for (p, value) in [(50, stats.p50), (90, stats.p90), (99, stats.p99)] {
                let at_most = values.iter().filter(|v| **v <= value).count();
                let below = values.iter().filter(|v| **v < value).count();
                prop_assert!(at_most * 100 >= p * values.len());
                prop_assert!(below * 100 < p * values.len());
            }
            let reversed = Stats::of(values.into_iter().rev().collect());
            prop_assert_eq!(stats, reversed);
        }
    }
}
