//! Memory of real bytes: the rules of its geometry, and content written to and compared with it. Shared by all fabrics that store bytes.

use super::{Content, Error, Extent, Grid, Result, Units};

fn invalid<T>(what: &'static str, value: u64, right: &'static str) -> Result<T> {
    Err(Error::Invalid { what, value, right })
}

impl Grid {
    /// Whether such a pool can exist; its bytes.
    pub fn check(&self) -> Result<u64> {
        if self.buffers == 0 || self.pages == 0 || self.page == 0 {
            return invalid("grid", 0, "buffers, pages and page are at least 1");
        }
        let Some(used) = self.page.checked_mul(self.pages.into()) else {
            return invalid("page", self.page, "a buffer has less than 2^64 bytes");
        };
        if self.pitch < used {
            return invalid("pitch", self.pitch, "at least pages * page");
        }
        match self.pitch.checked_mul(self.buffers.into()).filter(|n| *n < 1 << 56) {
            Some(len) => Ok(len),
            None => invalid("pitch", self.pitch, "a pool has less than 2^56 bytes"),
        }
    }
}

impl Extent {
    /// Whether the place lies in a pool.
    pub fn check(&self, grid: &Grid) -> Result<()> {
        if self.buffers.start > self.buffers.end || self.buffers.end > grid.buffers {
            return invalid("buffers", self.buffers.end.into(), "a range of the pool's buffers");
        }
        if self.count > 1 && self.step < self.len {
            return invalid("step", self.step, "at least the piece's length");
        }
        let end = u64::from(self.count.saturating_sub(1))
            .checked_mul(self.step)
            .and_then(|n| n.checked_add(self.len)?.checked_add(self.at));
        match end {
            Some(end) if end <= grid.pitch => Ok(()),
            _ => invalid("offset", self.at, "the pieces lie within one pitch"),
        }
    }
}

/// Bytes handled at a time: fits on the stack and in the first-level cache.
const WINDOW: usize = 1024;

/// Calls `each(offset in the pool, position in the stream, bytes)` for windows that cover a place that was checked, until it says no.
fn windows(
    grid: &Grid,
    place: &Extent,
    what: Content,
    mut each: impl FnMut(usize, u64, usize) -> bool,
) -> bool {
    for (i, buffer) in place.buffers.clone().enumerate() {
        for k in 0..u64::from(place.count) {
            let at = u64::from(buffer) * grid.pitch + place.at + k * place.step;
            let position = what
                .at
                .wrapping_add((i as u64).wrapping_mul(what.per_buffer))
                .wrapping_add(k.wrapping_mul(what.per_piece));
            let mut done = 0;
            while done < place.len {
                let n = (place.len - done).min(WINDOW as u64);
                if !each((at + done) as usize, position.wrapping_add(done), n as usize) {
                    return false;
                }
                done += n;
            }
        }
    }
    true
}

/// Writes content to a place that was checked, through `put(offset in the pool, bytes)`.
pub fn stamp(grid: &Grid, place: &Extent, what: Content, mut put: impl FnMut(usize, &[u8])) {
    let mut window = [0u8; WINDOW];
    windows(grid, place, what, |at, position, n| {
        Content::fill(what.seed, position, &mut window[..n]);
        put(at, &window[..n]);
        true
    });
}

/// Bytes of a unit at most; longer ones are cut.
pub const MAX_UNIT: u64 = 4096;

/// The sum of the units of a place that was checked: of each the XXH3 hash (64 bits, no seed) of its bytes, mixed with its name.
/// `get(offset in the pool, bytes)` reads it. XXH3 because it is the fastest hash that is made for checksums on any CPU (no instruction of its own
/// as CRC32C has, tens of gigabytes a second), has all of its 64 bits to give, and is in a crate without dependencies.
pub fn checksum(grid: &Grid, place: &Extent, units: Units, mut get: impl FnMut(usize, &mut [u8])) -> u64 {
    let (mut window, mut sum) = ([0u8; MAX_UNIT as usize], 0u64);
    let unit = units.unit.clamp(1, MAX_UNIT);
    for (i, buffer) in (0u64..).zip(place.buffers.clone()) {
        for k in 0..u64::from(place.count) {
            let at = u64::from(buffer) * grid.pitch + place.at + k * place.step;
            let name = units
                .name
                .wrapping_add(i.wrapping_mul(units.per_buffer))
                .wrapping_add(k.wrapping_mul(units.per_piece));
            // As many whole units at a time as fit.
            let most = MAX_UNIT / unit * unit;
            let mut done = 0;
            while done < place.len {
                let n = (place.len - done).min(most);
                let bytes = &mut window[..n as usize];
                get((at + done) as usize, bytes);
                for (j, bytes) in (0u64..).zip(bytes.chunks(unit as usize)) {
                    let hash = xxhash_rust::xxh3::xxh3_64(bytes);
                    sum = sum.wrapping_add(Content::word(hash, name.wrapping_add(done + j * unit)));
                }
                done += n;
            }
        }
    }
    sum
}

/// Compares content with a place that was checked; `get(offset in the pool, bytes)` reads it.
pub fn holds(grid: &Grid, place: &Extent, what: Content, mut get: impl FnMut(usize, &mut [u8])) -> bool {
    let (mut want, mut have) = ([0u8; WINDOW], [0u8; WINDOW]);
    windows(grid, place, what, |at, position, n| {
        Content::fill(what.seed, position, &mut want[..n]);
        get(at, &mut have[..n]);
        want[..n] == have[..n]
    })
}
