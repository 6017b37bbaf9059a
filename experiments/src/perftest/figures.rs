//! From times to figures.

use engine::time::Time;

/// The result of one measurement.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Figures {
    /// Of a bandwidth test.
    Bandwidth(Bandwidth),
    /// Of a latency test.
    Latency(Latency),
}

/// Bandwidth of one message size, all queue pairs together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bandwidth {
    /// Message size, bytes.
    pub size: u32,
    /// Messages that were measured.
    pub messages: u64,
    /// Best rate between any post and any later completion, messages per second; none for more than 20,000 messages.
    pub peak: Option<f64>,
    /// Messages per second over all.
    pub rate: f64,
}

impl Bandwidth {
    /// From posts (requests posted before, when) and completions (requests done, when), both ascending.
    pub(super) fn of(size: u32, posts: &[(u64, Time)], ends: &[(u64, Time)], peak: bool) -> Option<Self> {
        let ((_, start), (messages, end)) = (*posts.first()?, *ends.last()?);
        let rate = |messages: u64, from: Time, to: Time| messages as f64 / to.since(from).as_secs();
        let average = rate(messages, start, end);
        let mut best = average;
        if peak {
            for &(before, from) in posts {
                let later = ends.partition_point(|(done, _)| *done <= before);
                for &(done, to) in &ends[later..] {
                    best = best.max(rate(done - before, from, to));
                }
            }
        }
        average.is_finite().then_some(Self { size, messages, peak: peak.then_some(best), rate: average })
    }

    /// Of a rate in messages per second: 2^20 bytes per second.
    pub fn mib_per_s(&self, rate: f64) -> f64 {
        rate * f64::from(self.size) / f64::from(1 << 20)
    }

    /// Of a rate in messages per second: 10^9 bits per second.
    pub fn gbit_per_s(&self, rate: f64) -> f64 {
        rate * f64::from(self.size) * 8.0 / 1e9
    }
}

/// Latency of one message size; all in microseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latency {
    /// Samples that were taken; the two longest count only in `max`.
    pub samples: u64,
    /// Shortest.
    pub min: f64,
    /// Second longest: as in perftest the longest is left out, it is the scheduler's.
    pub max: f64,
    /// Median.
    pub typical: f64,
    /// Mean.
    pub avg: f64,
    /// Standard deviation.
    pub stdev: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
    /// 999 of 1000 are at most this.
    pub p999: f64,
}

/// Samples left out of mean and percentiles (perftest's `LAT_MEASURE_TAIL`).
const TAIL: usize = 2;

impl Latency {
    /// From the times of the posts; each sample is the time to the next post, divided by `halves`.
    pub(super) fn of(posts: &[Time], halves: u32) -> Option<Self> {
        let mut samples: Vec<u64> = posts.windows(2).map(|pair| pair[1].since(pair[0]).0).collect();
        samples.sort_unstable();
        let n = samples.len().checked_sub(TAIL).filter(|n| *n > 0)?;
        let us = |picos: f64| picos / f64::from(halves) / 1e6;
        let of = |at: usize| us(samples[at] as f64);
        let kept = &samples[..n];
        let mean = kept.iter().map(|s| *s as f64).sum::<f64>() / n as f64;
        let squares = kept.iter().map(|s| (*s as f64 - mean) * (*s as f64 - mean)).sum::<f64>();
        let typical = if n.is_multiple_of(2) { (of(n / 2) + of(n / 2 - 1)) / 2.0 } else { of(n / 2) };
        let at = |share: usize, of_all: usize| (n * share).div_ceil(of_all) - 1;
        Some(Self {
            samples: samples.len() as u64,
            min: of(0),
            max: of(n),
            typical,
            avg: us(mean),
            stdev: us((squares / n as f64).sqrt()),
            p99: of(at(99, 100)),
            p999: of(at(999, 1000)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::time::Span;

    #[test]
    fn latency_is_of_the_samples_without_the_two_longest() {
        // 100 samples: 1 .. 98 us, then two of a second.
        let mut posts = vec![Time::ZERO];
        for us in (1..=98).rev().chain([1_000_000, 1_000_000]) {
            posts.push(*posts.last().unwrap() + Span::us(us));
        }
        let whole = Latency::of(&posts, 1).unwrap();
        assert_eq!((whole.samples, whole.min, whole.max), (100, 1.0, 1_000_000.0));
        assert_eq!((whole.typical, whole.avg), (49.5, 49.5));
        assert!((whole.stdev - ((98.0f64 * 98.0 - 1.0) / 12.0).sqrt()).abs() < 1e-9);
        assert_eq!((whole.p99, whole.p999), (98.0, 98.0));
        let half = Latency::of(&posts, 2).unwrap();
        assert_eq!((half.min, half.typical), (0.5, 24.75));
        assert_eq!(Latency::of(&posts[..3], 1), None);
    }

    #[test]
    fn average_is_over_all_and_peak_is_the_best_stretch() {
        let us = |n| Time::ZERO + Span::us(n);
        // Ten in the first 10 us, ten in the next 30 us.
        let (posts, ends) = ([(0, us(0)), (10, us(10))], [(10, us(10)), (20, us(40))]);
        let figures = Bandwidth::of(1 << 20, &posts, &ends, true).unwrap();
        assert!((figures.rate - 0.5e6).abs() < 1e-3);
        assert!((figures.peak.unwrap() - 1e6).abs() < 1e-3);
        assert!((figures.mib_per_s(figures.rate) - 0.5e6).abs() < 1e-3);
        assert_eq!(Bandwidth::of(8, &posts, &ends, false).unwrap().peak, None);
        assert_eq!(Bandwidth::of(8, &[], &[], true), None);
    }
}
