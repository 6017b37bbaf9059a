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

use super::cell::{Cell, Rect};
use engine::fabric::{Content, Extent, Grid};
use std::ops::Range;

#[derive(Clone, Debug, Default)]
enum Column {
    #[default]
    Empty,
    One(Cell),
    Many(Vec<Cell>),
}

impl Column {
    fn cells(&self) -> &[Cell] {
        match self {
            Column::Empty => &[],
            Column::One(cell) => std::slice::from_ref(cell),
            Column::Many(cells) => cells,
        }
    }
}

/// A pool of phantom memory.
#[derive(Clone, Debug)]
pub(crate) struct Phantom {
    page: u64,
    buffers: u32,
    columns: Vec<Column>,
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
        let columns = grid.pitch.div_ceil(page) as usize;
        Self { page, buffers: grid.buffers, columns: vec![Column::Empty; columns], spare: Vec::new() }
    }

    /// Cuts the pieces of a buffer at page borders: `each(column, rect, first piece, offset in it)`.
    fn cut(&self, place: &Extent, mut each: impl FnMut(usize, Rect, u64, u64)) {
        let (b0, b1) = (place.buffers.start, place.buffers.end);
        let (page, len, count) = (self.page, place.len, u64::from(place.count));
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

    /// The whole pages that a place begins with, if it is one row in all buffers: their columns, the cell of the first, and the rest of
    /// the place. Requests are rarely a whole number of pages long; all but their last page go this way.
    fn whole_pages(&self, place: &Extent, what: Content) -> Option<(Range<usize>, Cell, Extent, Content)> {
        let page = self.page;
        let row = place.count == 1
            && place.buffers.start == 0
            && place.buffers.end == self.buffers
            && place.at.is_multiple_of(page)
            && place.len >= page;
        let first = (place.at / page) as usize;
        let pages = first..first + (place.len / page) as usize;
        (row && pages.end <= self.columns.len()).then(|| {
            let at = Rect { b0: 0, b1: self.buffers, lo: 0, len: page, count: 1, step: page };
            let (seed, pos, per_buffer) = (what.seed, what.at, what.per_buffer);
            let done = place.len / page * page;
            let rest = Extent { at: place.at + done, len: place.len - done, ..place.clone() };
            let cell = Cell { at, seed, pos, per_buffer, per_piece: page }.simple();
            (pages, cell, rest, Content { at: what.at.wrapping_add(done), ..what })
        })
    }

    /// Names what is at `place`.
    pub(crate) fn stamp(&mut self, place: &Extent, what: Content) {
        if place.buffers.is_empty() || place.len == 0 {
            return;
        }
        if let Some((pages, cell, rest, what)) = self.whole_pages(place, what) {
            let page = self.page;
            let mut pos = cell.pos;
            for column in &mut self.columns[pages] {
                *column = Column::One(Cell { pos, ..cell });
                pos = pos.wrapping_add(page);
            }
            return self.stamp(&rest, what);
        }
        let mut columns = std::mem::take(&mut self.columns);
        let mut spare = std::mem::take(&mut self.spare);
        self.cut(place, |column, at, k, offset| {
            let pos = what.at.wrapping_add(k.wrapping_mul(what.per_piece)).wrapping_add(offset);
            let (seed, per_buffer, per_piece) = (what.seed, what.per_buffer, what.per_piece);
            put(&mut columns[column], Cell { at, seed, pos, per_buffer, per_piece }.simple(), &mut spare);
        });
        (self.columns, self.spare) = (columns, spare);
    }

    /// Whether `place` holds just this.
    pub(crate) fn holds(&self, place: &Extent, what: Content) -> bool {
        if place.buffers.is_empty() || place.len == 0 {
            return true;
        }
        if let Some((pages, cell, rest, what)) = self.whole_pages(place, what) {
            let page = self.page;
            let mut pos = cell.pos;
            let all = self.columns[pages].iter().all(|column| {
                let same = matches!(column, Column::One(one) if *one == Cell { pos, ..cell });
                pos = pos.wrapping_add(page);
                same
            });
            if all {
                return self.holds(&rest, what);
            }
        }
        let mut all = true;
        self.cut(place, |column, at, k, offset| {
            if !all {
                return;
            }
            let pos = what.at.wrapping_add(k.wrapping_mul(what.per_piece)).wrapping_add(offset);
            let want =
                Cell { at, seed: what.seed, pos, per_buffer: what.per_buffer, per_piece: what.per_piece };
            all = covered(self.columns[column].cells(), &want);
        });
        all
    }

    /// Forgets what is at `place`.
    pub(crate) fn forget(&mut self, place: &Extent) {
        if place.buffers.is_empty() || place.len == 0 {
            return;
        }
        let mut columns = std::mem::take(&mut self.columns);
        let mut spare = std::mem::take(&mut self.spare);
        self.cut(place, |column, at, _, _| clear(&mut columns[column], &at, &mut spare));
        (self.columns, self.spare) = (columns, spare);
    }

    /// Calls `each(offset in the buffer, bytes, seed, position)` for every known byte range of one piece of one buffer.
    pub(crate) fn known(&self, buffer: u32, at: u64, len: u64, mut each: impl FnMut(u64, u64, u64, u64)) {
        self.cut(&Extent::piece(buffer, at, len), |column, rect, _, _| {
            let base = column as u64 * self.page;
            for cell in self.columns[column].cells() {
                cell.meet(&rect, |hit| {
                    for j in 0..hit.cell.at.count {
                        let pos = hit.cell.pos.wrapping_add(j.wrapping_mul(hit.cell.per_piece));
                        let lo = hit.cell.at.lo + j * hit.cell.at.step;
                        each(base + lo, hit.cell.at.len, hit.cell.seed, pos);
                    }
                });
            }
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
        // A row of whole pages of which the source knows one thing each, and which leaves nothing of the target's.
        let all = from.buffer == 0 && to.buffer == 0 && buffers == self.buffers && buffers == source.buffers;
        let aligned = from.at.is_multiple_of(sp) && to.at.is_multiple_of(dp);
        if all && count == 1 && sp == dp && aligned && len >= sp {
            let (s, d, n) = ((from.at / sp) as usize, (to.at / dp) as usize, (len / sp) as usize);
            let whole = Rect { b0: 0, b1: buffers, lo: 0, len: sp, count: 1, step: sp };
            let simple = |column: &Column| matches!(column, Column::One(cell) if cell.at == whole);
            if source.columns[s..s + n].iter().all(simple) {
                for (new, old) in self.columns[d..d + n].iter_mut().zip(&source.columns[s..s + n]) {
                    new.clone_from(old);
                }
                let done = len / sp * sp;
                let from = Pieces { at: from.at + done, ..from };
                let to = Pieces { at: to.at + done, ..to };
                if done < len {
                    self.copy_from(source, from, to, buffers, len - done, 1);
                }
                return;
            }
        }
        let mut spare = std::mem::take(&mut self.spare);
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
                transfer(&source.columns[sc], &old, &mut self.columns[dc], &new, dp, &mut spare);
                k += n;
                continue;
            }
            let mut done = 0;
            while done < len {
                let n = (sp - sl).min(dp - dl).min(len - done);
                let (old, new) = (rect(from.buffer, sl, n, 1, n), rect(to.buffer, dl, n, 1, n));
                transfer(&source.columns[sc], &old, &mut self.columns[dc], &new, dp, &mut spare);
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
        self.spare = spare;
    }
}

/// Whether the cells say of every byte of `want` what it says.
#[inline]
fn covered(cells: &[Cell], want: &Cell) -> bool {
    if let [one] = cells
        && *one == want.simple()
    {
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
fn transfer(from: &Column, old: &Rect, to: &mut Column, new: &Rect, page: u64, spare: &mut Vec<Cell>) {
    if let Column::One(cell) = from
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
    for cell in from.cells() {
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
