//! The page columns of a pool, most of which belong to a *row* of whole pages and are four bytes each.
//!
//! KV content is written and moved in rows of whole pages. Such a row is one record, and its columns are its number: to write, move or
//! check a row is work on one record and on a slice of numbers. A column that holds anything else has a list of cells of its own.

use super::cell::{Cell, Rect};
use std::ops::Range;

/// What is known of one column.
#[derive(Clone, Debug, Default)]
pub(super) enum Column {
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

/// Whole pages of all buffers that hold one stream: page `c` of buffer `b` is `seed` from `base + c * page + b * per_buffer` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) seed: u64,
    pub(super) base: u64,
    pub(super) per_buffer: u64,
}

/// Name of a column of which nothing is known.
const EMPTY: u32 = u32::MAX;
/// Names from here on are columns with cells of their own, names below are rows.
const OWN: u32 = 1 << 31;

/// The columns of a pool.
#[derive(Clone, Debug)]
pub(super) struct Columns {
    page: u64,
    whole: Rect,
    names: Vec<u32>,
    /// Rows, and how many columns each has.
    rows: Vec<(Row, u32)>,
    free_rows: Vec<u32>,
    own: Vec<Column>,
    free_own: Vec<u32>,
}

/// How many names at the beginning are the same.
#[inline]
fn alike(names: &[u32]) -> usize {
    let Some(&first) = names.first() else { return 0 };
    let mut n = 0;
    for eight in names.chunks_exact(8) {
        if eight.iter().fold(0, |differ, name| differ | (name ^ first)) != 0 {
            break;
        }
        n += 8;
    }
    n + names[n..].iter().take_while(|name| **name == first).count()
}

impl Columns {
    pub(super) fn new(count: usize, page: u64, buffers: u32) -> Self {
        Self {
            page,
            whole: Rect { b0: 0, b1: buffers, lo: 0, len: page, count: 1, step: page },
            names: vec![EMPTY; count],
            rows: Vec::new(),
            free_rows: Vec::new(),
            own: Vec::new(),
            free_own: Vec::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.names.len()
    }

    /// A whole page of all buffers.
    pub(super) fn whole(&self) -> Rect {
        self.whole
    }

    /// Position in the stream of column 0 of a row whose column `at` is at `pos`.
    fn base(&self, at: usize, pos: u64) -> u64 {
        pos.wrapping_sub((at as u64).wrapping_mul(self.page))
    }

    /// The row of which column `at`, at position `pos` of its stream, is one.
    pub(super) fn row_at(&self, at: usize, seed: u64, pos: u64, per_buffer: u64) -> Row {
        Row { seed, base: self.base(at, pos), per_buffer }
    }

    fn cell(&self, row: &Row, at: usize) -> Cell {
        let pos = row.base.wrapping_add((at as u64).wrapping_mul(self.page));
        Cell { at: self.whole, seed: row.seed, pos, per_buffer: row.per_buffer, per_piece: self.page }
    }

    /// Makes columns pages of a row.
    pub(super) fn put_row(&mut self, columns: Range<usize>, row: Row) {
        let count = columns.len() as u32;
        if count == 0 {
            return;
        }
        // Pages that come one by one make one row.
        let before = columns.start.checked_sub(1).map(|i| self.names[i]).filter(|name| *name < OWN);
        let name = match before {
            Some(name) if self.rows[name as usize].0 == row => {
                self.rows[name as usize].1 += count;
                name
            }
            _ => match self.free_rows.pop() {
                Some(name) => {
                    self.rows[name as usize] = (row, count);
                    name
                }
                None => {
                    self.rows.push((row, count));
                    (self.rows.len() - 1) as u32
                }
            },
        };
        let mut at = columns.start;
        while at < columns.end {
            let n = alike(&self.names[at..columns.end]);
            self.drop_name(self.names[at], n as u32);
            at += n;
        }
        self.names[columns].fill(name);
    }

    /// `count` columns of this name are something else from now on.
    fn drop_name(&mut self, name: u32, count: u32) {
        if name < OWN {
            let left = &mut self.rows[name as usize].1;
            *left -= count;
            if *left == 0 {
                self.free_rows.push(name);
            }
        } else if name != EMPTY {
            self.own[(name ^ OWN) as usize] = Column::Empty;
            self.free_own.push(name ^ OWN);
        }
    }

    /// Whether columns are pages of a row.
    pub(super) fn are_row(&self, columns: Range<usize>, row: &Row) -> bool {
        let mut at = columns.start;
        while at < columns.end {
            match self.rows.get(self.names[at] as usize) {
                Some((own, _)) if own == row => at += alike(&self.names[at..columns.end]),
                _ => return false,
            }
        }
        true
    }

    /// How many of these columns, from the first on, are one row or hold nothing of any row; and the row as it would be if its first
    /// column were `to`.
    pub(super) fn run(&self, columns: Range<usize>, to: usize) -> (usize, Option<Row>) {
        let n = alike(&self.names[columns.clone()]);
        let row = self.rows.get(self.names[columns.start] as usize).map(|(row, _)| {
            let pos = row.base.wrapping_add((columns.start as u64).wrapping_mul(self.page));
            Row { base: self.base(to, pos), ..*row }
        });
        (n, row)
    }

    /// The cells of a column.
    pub(super) fn see<R>(&self, at: usize, look: impl FnOnce(&[Cell]) -> R) -> R {
        match self.names[at] {
            EMPTY => look(&[]),
            name if name < OWN => look(&[self.cell(&self.rows[name as usize].0, at)]),
            name => look(self.own[(name ^ OWN) as usize].cells()),
        }
    }

    /// Changes what is known of a column.
    pub(super) fn edit(&mut self, at: usize, change: impl FnOnce(&mut Column)) {
        let name = self.names[at];
        if name >= OWN && name != EMPTY {
            let column = &mut self.own[(name ^ OWN) as usize];
            change(column);
            match column {
                Column::Empty => {
                    self.free_own.push(name ^ OWN);
                    self.names[at] = EMPTY;
                }
                Column::One(cell) if cell.at == self.whole => {
                    let cell = *cell;
                    self.put_row(at..at + 1, self.row_at(at, cell.seed, cell.pos, cell.per_buffer));
                }
                _ => {}
            }
            return;
        }
        let mut column = Column::Empty;
        if name < OWN {
            column = Column::One(self.cell(&self.rows[name as usize].0, at));
            self.drop_name(name, 1);
            self.names[at] = EMPTY;
        }
        change(&mut column);
        match column {
            Column::Empty => {}
            Column::One(cell) if cell.at == self.whole => {
                self.put_row(at..at + 1, self.row_at(at, cell.seed, cell.pos, cell.per_buffer));
            }
            column => {
                let slot = match self.free_own.pop() {
                    Some(slot) => {
                        self.own[slot as usize] = column;
                        slot
                    }
                    None => {
                        self.own.push(column);
                        (self.own.len() - 1) as u32
                    }
                };
                self.names[at] = slot | OWN;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: u64 = 64;
    const COUNT: usize = 40;

    #[derive(Clone, Debug)]
    enum Act {
        Row { at: usize, count: usize, seed: u64, pos: u64 },
        Copy { from: usize, to: usize, count: usize },
        Forget(usize),
        Half(usize),
    }

    fn act() -> impl Strategy<Value = Act> {
        let at = 0..COUNT;
        prop_oneof![
            3 => (at.clone(), 1usize..25, 0u64..2, 0u64..4)
                .prop_map(|(at, count, seed, pos)| Act::Row { at, count, seed, pos: pos * PAGE }),
            3 => (at.clone(), at.clone(), 1usize..25)
                .prop_map(|(from, to, count)| Act::Copy { from, to, count }),
            1 => at.clone().prop_map(Act::Forget),
            1 => at.prop_map(Act::Half),
        ]
    }

    proptest! {
        /// Against one cell per column; every row has as many columns as it counts, and no other place is taken.
        #[test]
        fn rows_are_the_cells_of_their_columns(acts in proptest::collection::vec(act(), 1..60)) {
            let mut columns = Columns::new(COUNT, PAGE, 3);
            let mut model: Vec<Option<Cell>> = vec![None; COUNT];
            let whole = columns.whole();
            for act in acts {
                match act {
                    Act::Row { at, count, seed, pos } => {
                        let end = (at + count).min(COUNT);
                        let row = columns.row_at(at, seed, pos, 7);
                        columns.put_row(at..end, row);
                        for (slot, i) in model[at..end].iter_mut().zip(0..) {
                            let pos = pos + i * PAGE;
                            *slot = Some(Cell { at: whole, seed, pos, per_buffer: 7, per_piece: PAGE });
                        }
                        prop_assert!(columns.are_row(at..end, &row));
                    }
                    Act::Copy { from, to, count } => {
                        let n = count.min(COUNT - from.max(to));
                        let source = columns.clone();
                        let mut i = 0;
                        while i < n {
                            let (run, row) = source.run(from + i..from + n, to + i);
                            match row {
                                Some(row) => columns.put_row(to + i..to + i + run, row),
                                None => for j in i..i + run {
                                    let one = source.see(from + j, |cells| cells.first().copied());
                                    columns.edit(to + j, |c| *c = one.map_or(Column::Empty, Column::One));
                                },
                            }
                            i += run;
                        }
                        let old = model.clone();
                        model[to..to + n].copy_from_slice(&old[from..from + n]);
                    }
                    Act::Forget(at) => {
                        columns.edit(at, |column| *column = Column::Empty);
                        model[at] = None;
                    }
                    Act::Half(at) => {
                        let half = Rect { len: PAGE / 2, step: PAGE / 2, ..whole };
                        let cell = Cell { at: half, seed: 9, pos: 0, per_buffer: 7, per_piece: PAGE / 2 };
                        columns.edit(at, |column| *column = Column::One(cell));
                        model[at] = Some(cell);
                    }
                }
                for (at, want) in model.iter().enumerate() {
                    columns.see(at, |cells| assert_eq!(cells, want.as_slice(), "column {at}"));
                }
                let named = |name: usize| columns.names.iter().filter(|n| **n as usize == name).count();
                for (name, (_, count)) in columns.rows.iter().enumerate() {
                    prop_assert_eq!(named(name), *count as usize);
                    prop_assert_eq!(*count == 0, columns.free_rows.contains(&(name as u32)));
                }
                let own = columns.names.iter().filter(|n| (OWN..EMPTY).contains(*n)).count();
                prop_assert_eq!(own + columns.free_own.len(), columns.own.len());
            }
        }
    }
}
