//! Measuring: solve time of a flows file.
#![allow(clippy::disallowed_types)]
use std::time::Instant;
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let a: Vec<String> = std::env::args().collect();
    let text = std::fs::read(&a[1])?;
    let hosts: u32 = a[2].parse()?;
    let reps: usize = a.get(3).map_or(1, |s| s.parse().unwrap_or(1));
    let mut best = f64::INFINITY;
    let mut out = Vec::new();
    let mut all = Vec::new();
    for _ in 0..reps {
        let t = Instant::now();
        out = sim::net::flows::run(&text[..], hosts, 400.0, 1.0)?;
        let s = t.elapsed().as_secs_f64();
        best = best.min(s);
        all.push(s);
    }
    all.sort_by(f64::total_cmp);
    println!("flows={} best={best:.5} median={:.5}", out.len(), all[all.len() / 2]);
    if let Some(f) = a.get(4) {
        let want: Vec<f64> = std::fs::read_to_string(f)?.lines().map(|l| l.parse().unwrap()).collect();
        let mut worst: f64 = 0.0;
        let mut worst_abs: f64 = 0.0;
        for (a, b) in out.iter().zip(&want) {
            worst = worst.max((a - b).abs() / (5e-9 + 1e-6 * b));
            worst_abs = worst_abs.max((a - b).abs());
        }
        println!("compared {} worst {worst} of tolerance, abs {worst_abs:e}", want.len());
    }
    Ok(())
}
