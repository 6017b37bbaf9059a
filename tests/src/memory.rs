//! Memory of other processes, changed behind their backs: what a faulty NIC, bus or memory module does to them.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Where a process has memory on huge pages, which it asked for one by one: ranges of addresses.
///
/// # Panics
/// If there is no such process.
#[must_use]
pub fn on_huge_pages(pid: u32) -> Vec<Range<u64>> {
    let file = format!("/proc/{pid}/maps");
    let text = fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file}: {error}"));
    let range = |line: &str| {
        let (from, to) = line.split_whitespace().next()?.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).ok();
        Some(number(from)?..number(to)?)
    };
    text.lines().filter(|line| line.contains("/anon_hugepage")).filter_map(range).collect()
}

/// Inverts every byte there.
///
/// # Panics
/// If the process has no such memory, or is not ours to change.
pub fn invert(pid: u32, place: &Range<u64>) {
    let name = format!("/proc/{pid}/mem");
    let file = File::options().read(true).write(true).open(&name);
    let file = file.unwrap_or_else(|error| panic!("{name}: {error}"));
    let mut bytes = vec![0; usize::try_from(place.end - place.start).expect("it is mapped")];
    let fail = |error| panic!("{name} at {:#x}: {error}", place.start);
    file.read_exact_at(&mut bytes, place.start).unwrap_or_else(fail);
    bytes.iter_mut().for_each(|byte| *byte = !*byte);
    file.write_all_at(&bytes, place.start).unwrap_or_else(fail);
}
