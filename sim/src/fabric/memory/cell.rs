//! Cells of provenance: rectangles of (buffers x strided pieces) which hold one named content, and their algebra.

use std::ops::Range;

/// Which bytes of a column of pages: in each of `buffers`, `count` pieces of `len` bytes, `step` apart, from `lo` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rect {
    pub(super) b0: u32,
    pub(super) b1: u32,
    pub(super) lo: u64,
    pub(super) len: u64,
    pub(super) count: u64,
    pub(super) step: u64,
}

/// A rectangle and what it holds: piece `k` of buffer `b0 + i` is the stream `seed` from `pos + i * per_buffer + k * per_piece` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cell {
    pub(super) at: Rect,
    pub(super) seed: u64,
    pub(super) pos: u64,
    pub(super) per_buffer: u64,
    pub(super) per_piece: u64,
}

/// Where a cell and a rectangle meet, told in pieces of the rectangle: `count` times `len` bytes, the first at offset `a` of piece `k0`.
/// The next ones are at the same offset of the next pieces, or, if `within`, `cell.at.step` further in the same piece.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hit {
    pub(super) k0: u64,
    pub(super) a: u64,
    pub(super) within: bool,
    /// What is there; `at` is where it is in the cell's own column.
    pub(super) cell: Cell,
}

impl Rect {
    /// End of the last piece.
    pub(super) fn end(&self) -> u64 {
        self.lo + (self.count - 1) * self.step + self.len
    }
    /// Without gaps.
    pub(super) fn dense(&self) -> bool {
        self.count == 1 || self.step == self.len
    }
    /// Bytes in it.
    pub(super) fn bytes(&self) -> u64 {
        self.len * self.count * u64::from(self.b1 - self.b0)
    }
    fn start_of(&self, k: u64) -> u64 {
        self.lo + k * self.step
    }
    /// The pieces that have bytes in `x..y`.
    fn touching(&self, x: u64, y: u64) -> Range<u64> {
        if self.count == 1 {
            return 0..u64::from(x < self.lo + self.len && y > self.lo);
        }
        let first = if x < self.lo + self.len { 0 } else { (x - self.lo - self.len) / self.step + 1 };
        let end = if y <= self.lo { 0 } else { ((y - 1 - self.lo) / self.step + 1).min(self.count) };
        first..end.max(first)
    }
}

/// Floor division of `a - b` by `s`, and what is left.
fn phase(a: u64, b: u64, s: u64) -> (i64, u64) {
    let delta = a as i64 - b as i64;
    (delta.div_euclid(s as i64), delta.rem_euclid(s as i64) as u64)
}

impl Cell {
    /// The same cell in its simplest form: a dense row of pieces whose content is one row too is one piece.
    pub(super) fn simple(mut self) -> Self {
        if self.at.count > 1 && self.at.step == self.at.len && self.per_piece == self.at.len {
            self.at.len *= self.at.count;
            self.at.count = 1;
        }
        if self.at.count == 1 {
            self.at.step = self.at.len;
            self.per_piece = self.at.len;
        }
        self
    }

    /// The part of it in buffers `b0..b1`, which lie within its own.
    #[inline]
    pub(super) fn buffers(mut self, b0: u32, b1: u32) -> Self {
        self.pos = self.pos.wrapping_add(u64::from(b0 - self.at.b0).wrapping_mul(self.per_buffer));
        (self.at.b0, self.at.b1) = (b0, b1);
        self
    }

    /// Bytes `u..v` of its pieces `j`.
    fn pieces(mut self, j: Range<u64>, u: u64, v: u64) -> Self {
        self.pos = self.pos.wrapping_add(j.start.wrapping_mul(self.per_piece)).wrapping_add(u);
        self.at.lo += j.start * self.at.step + u;
        (self.at.len, self.at.count) = (v - u, j.end - j.start);
        self.simple()
    }

    /// Calls `hit` for every place where it meets `with`.
    pub(super) fn meet(&self, with: &Rect, mut hit: impl FnMut(Hit)) {
        let (b0, b1) = (self.at.b0.max(with.b0), self.at.b1.min(with.b1));
        if b0 >= b1 || self.at.lo >= with.end() || with.lo >= self.at.end() {
            return;
        }
        let cell = self.buffers(b0, b1);
        if with.count == 1 {
            cell.meet_interval(0, with.lo, with.lo + with.len, &mut hit);
        } else if cell.at.count == 1 {
            // The other way round: the pieces of `with` that touch the cell's one piece.
            let (x, y) = (cell.at.lo, cell.at.lo + cell.at.len);
            let mut k = with.touching(x, y);
            let part = |k: u64, n: u64| {
                let start = with.start_of(k).max(x);
                let len = (with.start_of(k) + with.len).min(y) - start;
                let mut cell = cell;
                cell.pos = cell.pos.wrapping_add(start - x);
                cell.at = Rect { lo: start, len, count: n, step: with.step, ..cell.at };
                cell.per_piece = with.step;
                Hit { k0: k, a: start - with.start_of(k), within: false, cell }
            };
            if !k.is_empty() && with.start_of(k.start) < x {
                hit(part(k.start, 1));
                k.start += 1;
            }
            if !k.is_empty() && with.start_of(k.end - 1) + with.len > y {
                k.end -= 1;
                hit(part(k.end, 1));
            }
            if !k.is_empty() {
                hit(part(k.start, k.end - k.start));
            }
        } else if cell.at.step == with.step {
            let (q, d) = phase(cell.at.lo, with.lo, with.step);
            let mut family = |shift: i64, a: u64, end: u64, skip: u64| {
                let k0 = shift.max(0);
                let k1 = (with.count as i64).min(cell.at.count as i64 + shift);
                if a < end && k0 < k1 {
                    let j = (k0 - shift) as u64;
                    let part = cell.strided(j..j + (k1 - k0) as u64, skip, skip + end - a);
                    hit(Hit { k0: k0 as u64, a, within: false, cell: part });
                }
            };
            family(q, d, with.len.min(d + cell.at.len), 0);
            if d + cell.at.len > with.step {
                family(q + 1, 0, with.len.min(d + cell.at.len - with.step), with.step - d);
            }
        } else {
            for k in with.touching(cell.at.lo, cell.at.end()) {
                let x = with.start_of(k);
                cell.meet_interval(k, x, x + with.len, &mut hit);
            }
        }
    }

    /// Like [`Self::pieces`], but keeps the step of a single piece.
    fn strided(mut self, j: Range<u64>, u: u64, v: u64) -> Self {
        self.pos = self.pos.wrapping_add(j.start.wrapping_mul(self.per_piece)).wrapping_add(u);
        self.at.lo += j.start * self.at.step + u;
        (self.at.len, self.at.count) = (v - u, j.end - j.start);
        self
    }

    fn meet_interval(&self, k0: u64, x: u64, y: u64, hit: &mut impl FnMut(Hit)) {
        let mut j = self.at.touching(x, y);
        let mut part = |j: Range<u64>| {
            let start = self.at.start_of(j.start);
            let (u, v) = (x.max(start) - start, y.min(start + self.at.len) - start);
            hit(Hit { k0, a: start + u - x, within: true, cell: self.strided(j, u, v) });
        };
        if !j.is_empty() && self.at.start_of(j.start) < x {
            part(j.start..j.start + 1);
            j.start += 1;
        }
        if !j.is_empty() && self.at.start_of(j.end - 1) + self.at.len > y {
            j.end -= 1;
            part(j.end..j.end + 1);
        }
        if !j.is_empty() {
            part(j);
        }
    }

    /// What is left of it without `hole`.
    pub(super) fn without(&self, hole: &Rect, left: &mut Vec<Cell>) {
        let (b0, b1) = (self.at.b0.max(hole.b0), self.at.b1.min(hole.b1));
        if b0 >= b1 || self.at.lo >= hole.end() || hole.lo >= self.at.end() {
            left.push(*self);
            return;
        }
        if self.at.b0 < b0 {
            left.push(self.buffers(self.at.b0, b0));
        }
        if b1 < self.at.b1 {
            left.push(self.buffers(b1, self.at.b1));
        }
        let cell = self.buffers(b0, b1);
        let (n, len) = (cell.at.count, cell.at.len);
        if hole.dense() {
            cell.without_interval(hole.lo, hole.end(), left);
        } else if n == 1 {
            let (x, y) = (cell.at.lo, cell.at.lo + len);
            let k = hole.touching(x, y);
            if k.is_empty() {
                left.push(cell);
                return;
            }
            let first = hole.start_of(k.start);
            if x < first {
                left.push(cell.pieces(0..1, 0, first - x));
            }
            if k.end - k.start > 1 {
                let mut gaps = cell;
                let lo = first + hole.len;
                gaps.pos = gaps.pos.wrapping_add(lo - x);
                gaps.per_piece = hole.step;
                let (len, count) = (hole.step - hole.len, k.end - k.start - 1);
                gaps.at = Rect { lo, len, count, step: hole.step, ..gaps.at };
                left.push(gaps.simple());
            }
            let last = hole.start_of(k.end - 1) + hole.len;
            if last < y {
                left.push(cell.pieces(0..1, last - x, len));
            }
        } else if cell.at.step == hole.step {
            let (q, e) = phase(hole.lo, cell.at.lo, hole.step);
            let (inside, spills) = (e < len, e + hole.len > hole.step);
            if inside && spills {
                cell.without_each(hole, left);
                return;
            }
            let (shift, u, v) = match (inside, spills) {
                (true, _) => (q, e, len.min(e + hole.len)),
                (_, true) => (q + 1, 0, len.min(e + hole.len - hole.step)),
                _ => (i64::MAX / 2, 0, 0),
            };
            let j0 = shift.max(0).min(n as i64) as u64;
            let j1 = (hole.count as i64).saturating_add(shift).clamp(0, n as i64) as u64;
            if j0 >= j1 {
                left.push(cell);
                return;
            }
            for (j, u, v) in [(0..j0, 0, len), (j1..n, 0, len), (j0..j1, 0, u), (j0..j1, v, len)] {
                if !j.is_empty() && u < v {
                    left.push(cell.pieces(j, u, v));
                }
            }
        } else {
            cell.without_each(hole, left);
        }
    }

    fn without_interval(&self, x: u64, y: u64, left: &mut Vec<Cell>) {
        let (n, len) = (self.at.count, self.at.len);
        let j = self.at.touching(x, y);
        if j.is_empty() {
            left.push(*self);
            return;
        }
        if j.start > 0 {
            left.push(self.pieces(0..j.start, 0, len));
        }
        if j.end < n {
            left.push(self.pieces(j.end..n, 0, len));
        }
        let first = self.at.start_of(j.start);
        if first < x {
            left.push(self.pieces(j.start..j.start + 1, 0, x - first));
        }
        let last = self.at.start_of(j.end - 1);
        if last + len > y {
            left.push(self.pieces(j.end - 1..j.end, y - last, len));
        }
    }

    fn without_each(&self, hole: &Rect, left: &mut Vec<Cell>) {
        let mut work = vec![*self];
        let mut next = Vec::new();
        for k in hole.touching(self.at.lo, self.at.end()) {
            let x = hole.start_of(k);
            for cell in work.drain(..) {
                cell.without_interval(x, x + hole.len, &mut next);
            }
            std::mem::swap(&mut work, &mut next);
        }
        left.append(&mut work);
    }

    /// One cell that says what the two say, if there is one. Tried in both orders by the caller.
    pub(super) fn join(&self, next: &Self) -> Option<Self> {
        let (a, b) = (self, next);
        if a.seed != b.seed {
            return None;
        }
        let (n, m) = (a.at.b1 - a.at.b0, b.at.b1 - b.at.b0);
        if a.at.b1 == b.at.b0
            && (a.at.lo, a.at.len, a.at.count) == (b.at.lo, b.at.len, b.at.count)
            && (a.at.step, a.per_piece) == (b.at.step, b.per_piece)
        {
            let per = if n > 1 { a.per_buffer } else { b.pos.wrapping_sub(a.pos) };
            let follows = b.pos == a.pos.wrapping_add(u64::from(n).wrapping_mul(per));
            return (follows && (m == 1 || b.per_buffer == per)).then(|| {
                let mut joined = *a;
                joined.at.b1 = b.at.b1;
                joined.per_buffer = per;
                joined
            });
        }
        if (a.at.b0, a.at.b1) != (b.at.b0, b.at.b1)
            || n > 1 && a.per_buffer != b.per_buffer
            || a.at.lo >= b.at.lo
        {
            return None;
        }
        let (lo, pos) = (b.at.lo - a.at.lo, b.pos.wrapping_sub(a.pos));
        let mut joined = *a;
        if a.at.count == 1 && b.at.count == 1 && lo == a.at.len && pos == a.at.len {
            joined.at.len += b.at.len;
            return Some(joined.simple());
        }
        if a.at.count > 1
            && (a.at.count, a.at.step, a.per_piece) == (b.at.count, b.at.step, b.per_piece)
            && lo == a.at.len
            && pos == a.at.len
            && a.at.len + b.at.len <= a.at.step
        {
            joined.at.len += b.at.len;
            return Some(joined.simple());
        }
        if a.at.len != b.at.len {
            return None;
        }
        let (step, per) = match (a.at.count, b.at.count) {
            (1, 1) if lo == a.at.len => (lo, pos),
            (1, 1) => return None,
            (1, _) => (b.at.step, b.per_piece),
            _ => (a.at.step, a.per_piece),
        };
        let goes_on = lo == a.at.count * step && pos == a.at.count.wrapping_mul(per);
        if !goes_on || b.at.count > 1 && (b.at.step, b.per_piece) != (step, per) {
            return None;
        }
        joined.at.count += b.at.count;
        (joined.at.step, joined.per_piece) = (step, per);
        Some(joined.simple())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// (buffer, byte) -> (seed, position).
    type Bytes = BTreeMap<(u32, u64), (u64, u64)>;

    fn bytes<'a>(cells: impl IntoIterator<Item = &'a Cell>) -> Bytes {
        let mut all = Bytes::new();
        for c in cells {
            for b in c.at.b0..c.at.b1 {
                for k in 0..c.at.count {
                    for i in 0..c.at.len {
                        let pos = c
                            .pos
                            .wrapping_add(u64::from(b - c.at.b0).wrapping_mul(c.per_buffer))
                            .wrapping_add(k.wrapping_mul(c.per_piece))
                            .wrapping_add(i);
                        assert_eq!(
                            all.insert((b, c.at.lo + k * c.at.step + i), (c.seed, pos)),
                            None,
                            "twice"
                        );
                    }
                }
            }
        }
        all
    }

    fn rect() -> impl Strategy<Value = Rect> {
        let step = prop_oneof![Just(0u64), Just(1), Just(2), Just(5)];
        (0u32..3, 1u32..3, 0u64..30, 1u64..6, 1u64..5, step).prop_map(|(b, n, lo, len, count, gap)| {
            // Few different steps, so that two rectangles often have the same.
            let step = if gap == 5 { 8 } else { len + gap };
            let step = if count == 1 { len } else { step };
            Rect { b0: b, b1: b + n, lo, len, count, step }
        })
    }

    fn cell() -> impl Strategy<Value = Cell> {
        let per = prop_oneof![Just(0u64), Just(8), Just(5), Just(100)];
        (rect(), 0u64..2, 0u64..9, 0u64..3, per).prop_map(|(at, seed, pos, per_buffer, per_piece)| {
            let per_piece = if per_piece == 8 { at.step } else { per_piece };
            Cell { at, seed, pos, per_buffer: per_buffer * 8, per_piece }.simple()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

        #[test]
        fn meeting_and_leaving_are_what_bytes_say(cell in cell(), with in rect()) {
            let whole = bytes([&cell]);
            let plain = Cell { at: with, seed: 9, pos: 0, per_buffer: 0, per_piece: 0 };
            let within = bytes([&plain]);
            let mut hits = Vec::new();
            cell.meet(&with, |hit| {
                let step = if hit.within { hit.cell.at.step } else { with.step };
                let lo = with.lo + hit.k0 * with.step + hit.a;
                hits.push(Cell { at: Rect { lo, step, ..hit.cell.at }, ..hit.cell });
            });
            let want: Bytes = whole.iter().filter(|e| within.contains_key(e.0)).map(|(k, v)| (*k, *v)).collect();
            prop_assert_eq!(bytes(&hits), want);
            let mut left = Vec::new();
            cell.without(&with, &mut left);
            let want: Bytes = whole.into_iter().filter(|e| !within.contains_key(&e.0)).collect();
            prop_assert_eq!(bytes(&left), want);
        }

        #[test]
        fn joining_changes_nothing(cell in cell(), with in rect(), other in cell()) {
            // What a cut leaves is what most often joins again.
            let mut parts = Vec::new();
            cell.without(&with, &mut parts);
            cell.meet(&with, |hit| parts.push(hit.cell.simple()));
            prop_assert_eq!(bytes(&parts), bytes([&cell]));
            let whole = bytes([&cell]);
            if bytes([&other]).keys().all(|k| !whole.contains_key(k)) {
                parts.push(other);
            }
            for (i, a) in parts.iter().enumerate() {
                for (j, b) in parts.iter().enumerate() {
                    if i != j && let Some(joined) = a.join(b) {
                        prop_assert_eq!(bytes([&joined]), bytes([a, b]));
                    }
                }
            }
        }
    }
}
