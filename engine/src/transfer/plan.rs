//! From pages to work requests: the fewest that move some tokens.
//!
//! A request has one contiguous range at the target and up to `max_sge` ranges at the initiator. So the target's side decides:
//! pieces are visited in the order of its addresses, whatever the order of the tables, and every contiguous range there is cut
//! into requests greedily. That is the least: how far a request reaches from a byte on never falls as that byte moves on, so
//! starting each request as late as possible needs no more of them than any other cut.
//!
//! What repeats stays compact. Pages that are consecutive on both sides are one run, whichever of these the layouts allow:
//! one piece over all pages, one strided run of tokens, or one strided run of pages. Where packing crosses from one run into the
//! next (fragmented pages, gathers that do not divide a page), pieces join singly, up to `max_sge - 1` runs at each seam.

use super::pages::PageTable;
use super::pairing::Share;
use crate::fabric::{Lanes, MAX_GATHER, Plan, PlanError, Run};
use crate::registry::PageRun;
use models::{Group, SectionPair};
use std::ops::Range;
use std::sync::Arc;

/// Bounds of a work request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlanLimits {
    /// Most SGEs, at least 1 (which means no gather); more than [`MAX_GATHER`] are not used.
    pub max_sge: u16,
    /// Most bytes, at least 1.
    pub max_message: u32,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanningError {
    /// A page table ends before the tokens do.
    #[error("the {side}'s page table has {pages} pages of {page_tokens} tokens, token {last} needs {need}")]
    Pages {
        /// "initiator" or "target".
        side: &'static str,
        /// Pages in the table.
        pages: u32,
        /// Tokens of a page.
        page_tokens: u32,
        /// The last token to move.
        last: u32,
        /// Pages up to that token.
        need: u32,
    },
    /// Two places of the target's table name the same page: one's tokens would overwrite the other's.
    #[error("page {page} is in the target's page table more than once")]
    Twice {
        /// The page.
        page: u64,
    },
    /// A bound of zero.
    #[error("{what} is 0, must be at least 1")]
    Zero {
        /// Which bound.
        what: &'static str,
    },
    /// The runs make no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// The fewest requests that move `tokens` of one share between the pages of the initiator, `src`, and those of the target, `dst`. A WRITE
/// gathers at the initiator, a READ scatters there: to a plan the two are the same.
///
/// Offsets are from the bases of the registrations, the buffer's being in the lane. Token `t` is token `t % page_tokens` of the
/// `t / page_tokens`-th page of either table. No byte of another token is touched.
///
/// # Errors
/// When a table is too short, WRITEs would hit a page of the target twice, or a limit is zero.
pub fn plan(
    share: &Share,
    lanes: Arc<Lanes>,
    src: &PageTable,
    dst: &PageTable,
    tokens: Range<u32>,
    limits: PlanLimits,
) -> Result<Plan, PlanningError> {
    let side = |table| Side { table, origin: 0 };
    plan_between(&share.group, share.reads, lanes, side(src), side(dst), tokens, limits)
}

/// Pages of one side, the first of which holds token `origin`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Side<'a> {
    pub table: &'a PageTable,
    pub origin: u32,
}

/// [`plan`] between tables that need not begin with the first token.
pub(super) fn plan_between(
    group: &Group,
    reads: bool,
    lanes: Arc<Lanes>,
    src: Side<'_>,
    dst: Side<'_>,
    tokens: Range<u32>,
    limits: PlanLimits,
) -> Result<Plan, PlanningError> {
    if limits.max_sge == 0 {
        return Err(PlanningError::Zero { what: "max_sge" });
    }
    if limits.max_message == 0 {
        return Err(PlanningError::Zero { what: "max_message" });
    }
    if tokens.is_empty() {
        return Ok(Plan::new(lanes, Vec::new())?);
    }
    for (side, table, page_tokens) in
        [("initiator", src, group.src_page_tokens), ("target", dst, group.dst_page_tokens)]
    {
        let Side { table, origin } = table;
        let need = tokens.end.saturating_sub(origin).div_ceil(page_tokens);
        if table.len() < need {
            let (pages, last) = (table.len(), tokens.end - 1);
            return Err(PlanningError::Pages { side, pages, page_tokens, last, need });
        }
    }
    // A run for each pair of page runs is the rule.
    let some = (src.table.runs().len() + dst.table.runs().len()).min(tokens.len());
    let mut mover = Mover::new(group, Packer::new(limits, some));
    let ascends = |w: &[PageRun]| u64::from(w[0].first.0) + u64::from(w[0].count) <= u64::from(w[1].first.0);
    if dst.table.runs().windows(2).all(ascends) {
        segments(group, src, dst, tokens, |segment| mover.add(segment));
    } else {
        let mut sorted = Vec::with_capacity(some);
        segments(group, src, dst, tokens, |segment| sorted.push(segment));
        sorted.sort_unstable_by_key(|segment| segment.dst);
        let mut open: Option<Segment> = None;
        for next in sorted {
            match &mut open {
                Some(last) if next.dst < last.dst + last.tokens && !reads => {
                    return Err(PlanningError::Twice { page: next.dst / u64::from(group.dst_page_tokens) });
                }
                Some(last) if last.dst + last.tokens == next.dst && last.src + last.tokens == next.src => {
                    last.tokens += next.tokens;
                }
                _ => {
                    if let Some(segment) = open.replace(next) {
                        mover.add(segment);
                    }
                }
            }
        }
        if let Some(segment) = open {
            mover.add(segment);
        }
    }
    Ok(Plan::new(lanes, mover.finish())?)
}

/// Tokens that lie in consecutive pages on both sides. Positions count tokens from page 0 of the pool.
#[derive(Clone, Copy, Debug)]
struct Segment {
    src: u64,
    dst: u64,
    tokens: u64,
}

/// Where a page table is at a token.
struct Cursor<'a> {
    runs: std::slice::Iter<'a, PageRun>,
    page_tokens: u64,
    /// Position of the run's first token, and which tokens it has.
    position: u64,
    start: u64,
    end: u64,
}

impl<'a> Cursor<'a> {
    fn new(side: Side<'a>, page_tokens: u32, token: u64) -> Self {
        let mut cursor = Self {
            runs: side.table.runs().iter(),
            page_tokens: page_tokens.into(),
            position: 0,
            start: side.origin.into(),
            end: side.origin.into(),
        };
        while cursor.end <= token && cursor.next() {}
        cursor
    }
    fn next(&mut self) -> bool {
        let Some(run) = self.runs.next() else { return false };
        self.position = u64::from(run.first.0) * self.page_tokens;
        self.start = self.end;
        self.end += u64::from(run.count) * self.page_tokens;
        true
    }
}

/// Calls `each` with the longest segments, in the order of the tokens. The tables are long enough.
fn segments(group: &Group, src: Side<'_>, dst: Side<'_>, tokens: Range<u32>, mut each: impl FnMut(Segment)) {
    let (mut token, end) = (u64::from(tokens.start), u64::from(tokens.end));
    let mut s = Cursor::new(src, group.src_page_tokens, token);
    let mut d = Cursor::new(dst, group.dst_page_tokens, token);
    loop {
        let upto = s.end.min(d.end).min(end);
        each(Segment {
            src: s.position + (token - s.start),
            dst: d.position + (token - d.start),
            tokens: upto - token,
        });
        token = upto;
        if token >= end || (token == s.end && !s.next()) || (token == d.end && !d.next()) {
            return;
        }
    }
}

/// Turns segments, ascending at the destination, into pieces which ascend there too.
struct Mover<'a> {
    group: &'a Group,
    packer: Packer,
    /// Whether tokens of consecutive pages are one stride apart throughout, on each side.
    src_linear: bool,
    dst_linear: bool,
    /// Local distance and length of the sections, where these are equal and they touch at the destination.
    comb: Option<(u64, u64)>,
    /// Parts of one destination page, not yet moved.
    parts: Vec<Segment>,
}

impl<'a> Mover<'a> {
    fn new(group: &'a Group, packer: Packer) -> Self {
        let linear = |stride: fn(&SectionPair) -> u64, bytes: u64, tokens: u32| {
            group.sections.iter().all(|pair| stride(pair) * u64::from(tokens) == bytes)
        };
        let comb = match group.sections.as_slice() {
            [first, second, ..] => {
                let step = second.src_base.wrapping_sub(first.src_base);
                let even = |w: &[SectionPair]| {
                    w[0].len == w[1].len
                        && w[1].src_base == w[0].src_base.wrapping_add(step)
                        && w[1].dst_base == w[0].dst_base + w[0].len
                };
                group.sections.windows(2).all(even).then_some((step, first.len))
            }
            _ => None,
        };
        Self {
            src_linear: linear(|p| p.src_stride, group.src_page_bytes, group.src_page_tokens),
            dst_linear: linear(|p| p.dst_stride, group.dst_page_bytes, group.dst_page_tokens),
            comb,
            group,
            packer,
            parts: Vec::new(),
        }
    }

    fn add(&mut self, mut segment: Segment) {
        let group = self.group;
        if let ([pair], true, true) = (group.sections.as_slice(), self.src_linear, self.dst_linear) {
            let (local, remote) = (segment.src * pair.src_stride, segment.dst * pair.dst_stride);
            let strides = (pair.src_stride, pair.dst_stride);
            return self.packer.strided(
                local + pair.src_base,
                remote + pair.dst_base,
                pair.len,
                segment.tokens,
                strides,
            );
        }
        let (src_size, dst_size) = (u64::from(group.src_page_tokens), u64::from(group.dst_page_tokens));
        while segment.tokens > 0 {
            let (src_left, dst_left) = (src_size - segment.src % src_size, dst_size - segment.dst % dst_size);
            if let [range] = group.whole_page.as_slice()
                && dst_left == dst_size
                && segment.tokens >= dst_size
            {
                self.flush();
                let pages = segment.tokens / dst_size;
                let local = segment.src / src_size * group.src_page_bytes + range.src;
                let remote = segment.dst / dst_size * group.dst_page_bytes + range.dst;
                let steps = (group.src_page_bytes, group.dst_page_bytes);
                self.packer.strided(local, remote, range.len, pages, steps);
                segment.skip(pages * dst_size);
                continue;
            }
            let mut part = segment;
            if !self.src_linear {
                part.tokens = part.tokens.min(src_left);
            }
            if self.dst_linear {
                self.rows(part);
            } else {
                part.tokens = part.tokens.min(dst_left);
                // At the destination sections come before tokens, so a page waits until all of its parts are known.
                if self.parts.last().is_some_and(|last| last.dst / dst_size != part.dst / dst_size) {
                    self.flush();
                }
                self.parts.push(part);
            }
            segment.skip(part.tokens);
        }
    }

    /// Tokens before sections: the destination's rows are whole.
    fn rows(&mut self, part: Segment) {
        if self.group.sections.len() == 1 {
            return self.section(0, part);
        }
        for i in 0..part.tokens {
            let token = Segment { src: part.src + i, dst: part.dst + i, tokens: 1 };
            match self.comb {
                Some((step, len)) => {
                    let (local, remote) = self.place(0, token);
                    self.packer.strided(local, remote, len, self.group.sections.len() as u64, (step, len));
                }
                None => (0..self.group.sections.len()).for_each(|index| self.section(index, token)),
            }
        }
    }

    /// Moves the parts of a destination page.
    fn flush(&mut self) {
        if self.parts.is_empty() {
            return;
        }
        let mut parts = std::mem::take(&mut self.parts);
        for index in 0..self.group.sections.len() {
            for part in &parts {
                self.section(index, *part);
            }
        }
        parts.clear();
        self.parts = parts;
    }

    /// One section of tokens which are evenly spaced on both sides.
    fn section(&mut self, index: usize, part: Segment) {
        let pair = &self.group.sections[index];
        let (local, remote) = self.place(index, part);
        self.packer.strided(local, remote, pair.len, part.tokens, (pair.src_stride, pair.dst_stride));
    }

    /// Where a section of the first token is on the two sides.
    fn place(&self, index: usize, part: Segment) -> (u64, u64) {
        let (group, pair) = (self.group, &self.group.sections[index]);
        let (src_size, dst_size) = (u64::from(group.src_page_tokens), u64::from(group.dst_page_tokens));
        let local = part.src / src_size * group.src_page_bytes + part.src % src_size * pair.src_stride;
        let remote = part.dst / dst_size * group.dst_page_bytes + part.dst % dst_size * pair.dst_stride;
        (local + pair.src_base, remote + pair.dst_base)
    }

    fn finish(mut self) -> Vec<Run> {
        self.flush();
        self.packer.runs
    }
}

impl Segment {
    fn skip(&mut self, tokens: u64) {
        self.src += tokens;
        self.dst += tokens;
        self.tokens -= tokens;
    }
}

/// Packs pieces, ascending on the remote side, greedily into requests.
struct Packer {
    runs: Vec<Run>,
    max_sge: u64,
    max_message: u64,
    /// Where the last piece ends.
    local_end: u64,
    remote_end: u64,
    /// SGEs and bytes of the last request; no SGEs: there is none yet.
    sges: u64,
    bytes: u64,
}

impl Packer {
    fn new(limits: PlanLimits, runs: usize) -> Self {
        Self {
            runs: Vec::with_capacity(runs),
            max_sge: u64::from(limits.max_sge).min(MAX_GATHER as u64),
            max_message: limits.max_message.into(),
            local_end: 0,
            remote_end: 0,
            sges: 0,
            bytes: 0,
        }
    }

    /// `count` pieces of `len` bytes, `steps` apart on the two sides.
    fn strided(&mut self, mut local: u64, mut remote: u64, len: u64, mut count: u64, steps: (u64, u64)) {
        if count == 1 || steps == (len, len) {
            return self.piece(local, remote, len * count);
        }
        // A request that is bound by bytes can end inside any piece; then there is nothing that repeats.
        let touch = steps.1 == len;
        let uneven = touch
            && self.max_sge.min(count) * len > self.max_message
            && self.max_sge > 1
            && !self.max_message.is_multiple_of(len);
        let piecewise = len > self.max_message || uneven;
        while count > 0 && (piecewise || count == 1 || self.goes_on(local, remote)) {
            self.piece(local, remote, len);
            (local, remote, count) = (local + steps.0, remote + steps.1, count - 1);
        }
        if count == 0 {
            return;
        }
        let gather = if touch { self.max_sge.min(self.max_message / len) } else { 1 };
        self.runs.push(Run {
            local,
            remote,
            len: len as u32,
            count: count as u32,
            local_step: steps.0,
            remote_step: steps.1,
            gather: gather as u16,
            joins: false,
        });
        self.sges = (count - 1) % gather + 1;
        self.bytes = self.sges * len;
        self.local_end = local + (count - 1) * steps.0 + len;
        self.remote_end = remote + (count - 1) * steps.1 + len;
    }

    /// Whether the last request has room for a piece there.
    fn goes_on(&self, local: u64, remote: u64) -> bool {
        self.sges > 0
            && remote == self.remote_end
            && self.bytes < self.max_message
            && (local == self.local_end || self.sges < self.max_sge)
    }

    /// One piece of any length.
    fn piece(&mut self, mut local: u64, mut remote: u64, mut len: u64) {
        if self.goes_on(local, remote) {
            let fits = len.min(self.max_message - self.bytes);
            if local == self.local_end {
                self.lengthen(fits);
            } else {
                self.runs.push(Run { joins: true, ..Run::piece(local, remote, fits as u32) });
                self.sges += 1;
            }
            self.bytes += fits;
            (local, remote, len) = (local + fits, remote + fits, len - fits);
        }
        let size = self.max_message;
        while len > size {
            let count = (len / size).min(u32::MAX.into());
            self.runs.push(Run { count: count as u32, ..Run::piece(local, remote, size as u32) });
            (self.sges, self.bytes) = (1, size);
            (local, remote, len) = (local + count * size, remote + count * size, len - count * size);
        }
        if len > 0 {
            self.runs.push(Run::piece(local, remote, len as u32));
            (self.sges, self.bytes) = (1, len);
        }
        (self.local_end, self.remote_end) = (local + len, remote + len);
    }

    /// Adds bytes to the last piece, which leaves its run if that has others.
    fn lengthen(&mut self, by: u64) {
        let Some(last) = self.runs.last_mut() else { return };
        if last.count > 1 {
            last.count -= 1;
            let skip = u64::from(last.count);
            let (local, remote) =
                (last.local + skip * last.local_step, last.remote + skip * last.remote_step);
            let piece = Run { joins: self.sges > 1, ..Run::piece(local, remote, last.len) };
            self.runs.push(piece);
        }
        if let Some(last) = self.runs.last_mut() {
            *last = Run { joins: last.joins, ..Run::piece(last.local, last.remote, last.len + by as u32) };
        }
    }
}
