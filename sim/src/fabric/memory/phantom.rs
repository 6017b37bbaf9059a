//! Memory without bytes: only where each byte came from.
//!
//! For every page number there is a *column*, the pages of that number in all buffers of the pool, and for every column a list of
//! disjoint [`Cell`]s: these buffers, these pieces, this stream from this position on. Writing content puts a cell there; moving
//! bytes copies cells; checking content compares cells. This is exact provenance and not a fingerprint: a missing, doubled, shifted or
//! swapped slice is always found, because nothing is summed. Work is proportional to page columns and not to bytes: a page of
//! 160 buffers, wherever its bytes came from, is one cell as long as source and destination hold it in one piece.
//!
//! It differs from bytes in one way. Two places with different names that happen to hold equal bytes are different here; a comparison of
//! bytes could not tell them apart.

use super::cell::{Cell, Hit, Rect};
use super::columns::{Column, Columns, Row};
use engine::fabric::{Content, Extent, Grid, Units};
use std::ops::Range;

/// A pool of phantom memory.
#[derive(Clone, Debug)]
pub(crate) struct Phantom {
    page: u64,
    buffers: u32,
    columns: Columns,
    /// Recycled between calls.
    spare: Vec<Cell>,
}

/// Pieces of a pool to move: in each of `buffers` buffers from `buffer` on, the first piece at `at`, the others `step` apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pieces {
    pub(crate) buffer: u32,
    pub(crate) at: u64,
    pub(crate) step: u64,
}

impl Phantom {
    pub(crate) fn new(grid: &Grid) -> Self {
        let page = grid.page.max(1);
        let columns = Columns::new(grid.pitch.div_ceil(page) as usize, page, grid.buffers);
        Self { page, buffers: grid.buffers, columns, spare: Vec::new() }
    }

    /// Cuts the pieces of a buffer at page borders: `each(column, rect, first piece, offset in it)`.
    fn cut(page: u64, place: &Extent, mut each: impl FnMut(usize, Rect, u64, u64)) {
        let (b0, b1) = (place.buffers.start, place.buffers.end);
        let (len, count) = (place.len, u64::from(place.count));
        let mut k = 0;
        while k < count {
            let start = place.at + k * place.step;
            let (mut column, mut lo) = ((start / page) as usize, start % page);
            if lo + len <= page {
                let step = place.step.max(1);
                let n = if count == 1 { 1 } else { (count - k).min((page - lo - len) / step + 1) };
                let step = if n == 1 { len } else { step };
                each(column, Rect { b0, b1, lo, len, count: n, step }, k, 0);
                k += n;
                continue;
            }
            let mut done = 0;
            while done < len {
                let n = (page - lo).min(len - done);
                each(column, Rect { b0, b1, lo, len: n, count: 1, step: n }, k, done);
                done += n;
                (column, lo) = (column + 1, 0);
            }
            k += 1;
        }
    }

    /// The whole pages that a place begins with, if it is one row in all buffers: their columns, the row, and the rest of the place.
    /// Requests are rarely a whole number of pages long; all but their last page go this way.
    fn whole_pages(&self, place: &Extent, what: Content) -> Option<(Range<usize>, Row, Extent, Content)> {
        let page = self.page;
        let row = place.count == 1
            && place.buffers.start == 0
            && place.buffers.end == self.buffers
            && place.len >= page
            && place.at.is_multiple_of(page);
        if !row {
            return None;
        }
        let (first, count) = ((place.at / page) as usize, place.len / page);
        let pages = first..first + count as usize;
        (pages.end <= self.columns.len()).then(|| {
            let done = count * page;
            let rest = Extent { at: place.at + done, len: place.len - done, ..place.clone() };
            let row = self.columns.row_at(first, what.seed, what.at, what.per_buffer);
            (pages, row, rest, Content { at: what.at.wrapping_add(done), ..what })
        })
    }

    /// Names what is at `place`.
    pub(crate) fn stamp(&mut self, place: &Extent, what: Content) {
        if place.buffers.is_empty() || place.len == 0 {
            return;
        }
        if let Some((pages, row, rest, what)) = self.whole_pages(place, what) {
            self.columns.put_row(pages, row);
            return self.stamp(&rest, what);
        }
        let Self { columns, spare, .. } = self;
        Self::cut(self.page, place, |column, at, k, offset| {
            let pos = what.at.wrapping_add(k.wrapping_mul(what.per_piece)).wrapping_add(offset);
            let (seed, per_buffer, per_piece) = (what.seed, what.per_buffer, what.per_piece);
            let cell = Cell { at, seed, pos, per_buffer, per_piece }.simple();
            columns.edit(column, |column| put(column, cell, spare));
        });
    }

    /// Whether `place` holds just this.
    pub(crate) fn holds(&self, place: &Extent, what: Content) -> bool {
        if place.buffers.is_empty() || place.len == 0 {
            return true;
        }
        if let Some((pages, row, rest, what)) = self.whole_pages(place, what)
            && self.columns.are_row(pages, &row)
        {
            return self.holds(&rest, what);
        }
        let mut all = true;
        Self::cut(self.page, place, |column, at, k, offset| {
            if !all {
                return;
            }
            let pos = what.at.wrapping_add(k.wrapping_mul(what.per_piece)).wrapping_add(offset);
            let want =
                Cell { at, seed: what.seed, pos, per_buffer: what.per_buffer, per_piece: what.per_piece };
            all = self.columns.see(column, |cells| covered(cells, &want));
        });
        all
    }

    /// The sum over the known bytes of a place of where they came from, set against their names.
    pub(crate) fn checksum(&self, place: &Extent, units: Units) -> u64 {
        let mut sum = 0u64;
        for (i, buffer) in (0u64..).zip(place.buffers.clone()) {
            for k in 0..u64::from(place.count) {
                let at = place.at + k * place.step;
                let name = units
                    .name
                    .wrapping_add(i.wrapping_mul(units.per_buffer))
                    .wrapping_add(k.wrapping_mul(units.per_piece));
                self.known(buffer, at, place.len, |offset, len, seed, position| {
                    let shift = position.wrapping_sub(name.wrapping_add(offset - at));
                    sum = sum.wrapping_add(len.wrapping_mul(Content::word(seed, shift)));
                });
            }
        }
        sum
    }

    /// Forgets what is at `place`.
    pub(crate) fn forget(&mut self, place: &Extent) {
        if place.buffers.is_empty() || place.len == 0 {
            return;
        }
        let Self { columns, spare, .. } = self;
        Self::cut(self.page, place, |at, hole, _, _| columns.edit(at, |column| clear(column, &hole, spare)));
    }

    /// Calls `each(offset in the buffer, bytes, seed, position)` for every known byte range of one piece of one buffer.
    pub(crate) fn known(&self, buffer: u32, at: u64, len: u64, mut each: impl FnMut(u64, u64, u64, u64)) {
        Self::cut(self.page, &Extent::piece(buffer, at, len), |column, rect, _, _| {
            let base = column as u64 * self.page;
            let mut tell = |hit: Hit| {
                for j in 0..hit.cell.at.count {
                    let pos = hit.cell.pos.wrapping_add(j.wrapping_mul(hit.cell.per_piece));
                    let lo = hit.cell.at.lo + j * hit.cell.at.step;
                    each(base + lo, hit.cell.at.len, hit.cell.seed, pos);
                }
            };
            self.columns.see(column, |cells| cells.iter().for_each(|cell| cell.meet(&rect, &mut tell)));
        });
    }

    /// Copies `count` pieces of `len` bytes in each of `buffers` buffers from another pool.
    pub(crate) fn copy_from(
        &mut self,
        source: &Phantom,
        from: Pieces,
        to: Pieces,
        buffers: u32,
        len: u64,
        count: u64,
    ) {
        let (len, count) =
            if count > 1 && from.step == len && to.step == len { (len * count, 1) } else { (len, count) };
        let (sp, dp) = (source.page, self.page);
        let rect = |b0: u32, lo, len, count, step| Rect { b0, b1: b0 + buffers, lo, len, count, step };
        // Whole pages of all buffers go row by row.
        let all = from.buffer == 0 && to.buffer == 0 && buffers == self.buffers && buffers == source.buffers;
        let aligned = || from.at.is_multiple_of(sp) && to.at.is_multiple_of(dp);
        if all && count == 1 && sp == dp && len >= sp && aligned() {
            let (s, d, n) = ((from.at / sp) as usize, (to.at / dp) as usize, (len / sp) as usize);
            let whole = self.columns.whole();
            let Self { columns, spare, .. } = self;
            let mut i = 0;
            while i < n {
                let (run, row) = source.columns.run(s + i..s + n, d + i);
                match row {
                    Some(row) => columns.put_row(d + i..d + i + run, row),
                    None => (i..i + run).for_each(|i| {
                        source.columns.see(s + i, |cells| {
                            columns.edit(d + i, |to| transfer(cells, &whole, to, &whole, dp, spare));
                        });
                    }),
                }
                i += run;
            }
            let done = n as u64 * sp;
            if done < len {
                let (from, to) = (Pieces { at: from.at + done, ..from }, Pieces { at: to.at + done, ..to });
                self.copy_from(source, from, to, buffers, len - done, 1);
            }
            return;
        }
        let Self { columns, spare, .. } = self;
        let mut copy = |s: usize, old: Rect, d: usize, new: Rect| {
            source.columns.see(s, |cells| {
                columns.edit(d, |column| transfer(cells, &old, column, &new, dp, spare));
            });
        };
        let mut k = 0;
        while k < count {
            let (s, d) = (from.at + k * from.step, to.at + k * to.step);
            let (mut sc, mut sl) = ((s / sp) as usize, s % sp);
            let (mut dc, mut dl) = ((d / dp) as usize, d % dp);
            if sl + len <= sp && dl + len <= dp {
                let fits = |page: u64, lo: u64, step: u64| (page - lo - len) / step.max(1) + 1;
                let n = if count == 1 {
                    1
                } else {
                    (count - k).min(fits(sp, sl, from.step)).min(fits(dp, dl, to.step))
                };
                let (a, b) = if n == 1 { (len, len) } else { (from.step, to.step) };
                let (old, new) = (rect(from.buffer, sl, len, n, a), rect(to.buffer, dl, len, n, b));
                copy(sc, old, dc, new);
                k += n;
                continue;
            }
            let mut done = 0;
            while done < len {
                let n = (sp - sl).min(dp - dl).min(len - done);
                let (old, new) = (rect(from.buffer, sl, n, 1, n), rect(to.buffer, dl, n, 1, n));
                copy(sc, old, dc, new);
                done += n;
                (sl, dl) = (sl + n, dl + n);
                if sl == sp {
                    (sc, sl) = (sc + 1, 0);
                }
                if dl == dp {
                    (dc, dl) = (dc + 1, 0);
                }
            }
            k += 1;
        }
    }
}

/// Whether the cells say of every byte of `want` what it says.
#[inline]
fn covered(cells: &[Cell], want: &Cell) -> bool {
    // Cells are disjoint: one that is just this is all there is to know.
    let simple = want.simple();
    if cells.iter().rev().any(|cell| *cell == simple) {
        return true;
    }
    let (mut left, mut right) = (want.at.bytes(), true);
    for cell in cells {
        cell.meet(&want.at, |hit| {
            let at = &hit.cell.at;
            let pos = want
                .pos
                .wrapping_add(u64::from(at.b0 - want.at.b0).wrapping_mul(want.per_buffer))
                .wrapping_add(hit.k0.wrapping_mul(want.per_piece))
                .wrapping_add(hit.a);
            let per = if hit.within { at.step } else { want.per_piece };
            right &= hit.cell.seed == want.seed
                && hit.cell.pos == pos
                && (at.b1 - at.b0 == 1 || hit.cell.per_buffer == want.per_buffer)
                && (at.count == 1 || hit.cell.per_piece == per);
            left -= at.bytes();
        });
        if left == 0 || !right {
            break;
        }
    }
    right && left == 0
}

/// Takes `hole` out of what the column says.
fn clear(column: &mut Column, hole: &Rect, spare: &mut Vec<Cell>) {
    match column {
        Column::Empty => {}
        Column::One(cell) => {
            let at = &cell.at;
            if hole.dense()
                && hole.lo <= at.lo
                && at.end() <= hole.end()
                && hole.b0 <= at.b0
                && at.b1 <= hole.b1
            {
                *column = Column::Empty;
                return;
            }
            spare.clear();
            cell.without(hole, spare);
            settle(column, spare);
        }
        Column::Many(cells) => {
            spare.clear();
            for cell in cells.iter() {
                cell.without(hole, spare);
            }
            std::mem::swap(cells, spare);
            match cells.len() {
                0 => *column = Column::Empty,
                1 => *column = Column::One(cells[0]),
                _ => {}
            }
        }
    }
}

fn settle(column: &mut Column, cells: &[Cell]) {
    *column = match cells {
        [] => Column::Empty,
        [one] => Column::One(*one),
        many => Column::Many(many.to_vec()),
    };
}

/// Writes a cell over whatever was there.
#[inline]
fn put(column: &mut Column, cell: Cell, spare: &mut Vec<Cell>) {
    clear(column, &cell.at, spare);
    add(column, cell);
}

/// Adds a cell where nothing is known, joining it with its neighbours.
#[inline]
fn add(column: &mut Column, mut cell: Cell) {
    match column {
        Column::Empty => *column = Column::One(cell),
        Column::One(old) => {
            *column = match old.join(&cell).or_else(|| cell.join(old)) {
                Some(joined) => Column::One(joined),
                None => Column::Many(vec![*old, cell]),
            }
        }
        Column::Many(cells) => {
            while let Some((i, joined)) = cells
                .iter()
                .enumerate()
                .rev()
                .find_map(|(i, old)| Some((i, old.join(&cell).or_else(|| cell.join(old))?)))
            {
                cells.remove(i);
                cell = joined;
            }
            if cells.is_empty() {
                *column = Column::One(cell);
            } else {
                cells.push(cell);
            }
        }
    }
}

/// Makes `new` of one column say what `old` of another one says.
#[inline]
fn transfer(from: &[Cell], old: &Rect, to: &mut Column, new: &Rect, page: u64, spare: &mut Vec<Cell>) {
    if let [cell] = from
        && new.len == page
        && cell.at.dense()
        && (cell.at.lo, cell.at.end()) == (old.lo, old.end())
        && cell.at.b0 <= old.b0
        && old.b1 <= cell.at.b1
    {
        let mut cell = cell.buffers(old.b0, old.b1);
        (cell.at.b0, cell.at.b1, cell.at.lo) = (new.b0, new.b1, new.lo);
        put(to, cell, spare);
        return;
    }
    clear(to, new, spare);
    for cell in from {
        cell.meet(old, |hit| {
            let mut cell = hit.cell;
            let step = if hit.within { cell.at.step } else { new.step };
            let lo = new.lo + hit.k0 * new.step + hit.a;
            let b0 = new.b0 + (cell.at.b0 - old.b0);
            let b1 = new.b0 + (cell.at.b1 - old.b0);
            cell.at = Rect { b0, b1, lo, step, ..cell.at };
            add(to, cell.simple());
        });
    }
}
