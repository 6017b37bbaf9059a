//! Memory of real bytes.

use engine::fabric::{Content, Extent, Grid};

/// Calls `each(buffer index in the extent, piece, offset in the pool)`.
fn pieces(grid: &Grid, place: &Extent, mut each: impl FnMut(u64, u64, usize)) {
    for (i, buffer) in place.buffers.clone().enumerate() {
        for k in 0..u64::from(place.count) {
            each(i as u64, k, (u64::from(buffer) * grid.pitch + place.at + k * place.step) as usize);
        }
    }
}

fn position(what: &Content, i: u64, k: u64) -> u64 {
    what.at.wrapping_add(i.wrapping_mul(what.per_buffer)).wrapping_add(k.wrapping_mul(what.per_piece))
}

/// Writes content.
pub(super) fn stamp(bytes: &mut [u8], grid: &Grid, place: &Extent, what: Content) {
    let len = place.len as usize;
    pieces(grid, place, |i, k, at| Content::fill(what.seed, position(&what, i, k), &mut bytes[at..at + len]));
}

/// Compares content.
pub(super) fn holds(bytes: &[u8], grid: &Grid, place: &Extent, what: Content) -> bool {
    let mut same = true;
    pieces(grid, place, |i, k, at| {
        let mut window = [0u8; 256];
        let mut done = 0;
        while same && done < place.len {
            let n = (place.len - done).min(256) as usize;
            Content::fill(what.seed, position(&what, i, k).wrapping_add(done), &mut window[..n]);
            same = bytes[at + done as usize..][..n] == window[..n];
            done += n as u64;
        }
    });
    same
}
