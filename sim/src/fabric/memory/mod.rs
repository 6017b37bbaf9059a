//! One host's buffers and registrations, and copying between two hosts' buffers.

mod cell;
mod columns;
mod phantom;

use super::Mistakes;
use engine::fabric::{
    Access, Content, Error, Extent, Grid, Memory as Kind, Mr, Result, Status, Units, bytes,
};
use engine::id::{BufId, LKey, MrId, PortId, RKey};
use engine::map::Map;
use phantom::{Phantom, Pieces};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::Rng;
use std::ops::Range;

/// Byte buffers are real: more than this is a mistake of the experiment, which wants phantom memory.
const MAX_BYTES: u64 = 1 << 36;

/// [`Mistakes::bits_flipped`] leaves messages of up to so many bytes as they are: what is not KV.
const FLIPPED_ABOVE: u64 = 64;

#[derive(Clone, Debug)]
enum Store {
    Bytes(Vec<u8>),
    Phantom(Phantom),
}

#[derive(Clone, Debug)]
struct Buffer {
    grid: Grid,
    addr: u64,
    store: Store,
    regions: u32,
}

#[derive(Clone, Debug)]
struct Region {
    buf: BufId,
    port: PortId,
    span: Range<u64>,
    addr: u64,
    access: Access,
    lkey: u32,
    rkey: u32,
}

/// A place in a buffer that a key and an address named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Spot {
    pub(crate) buf: u32,
    pub(crate) at: u64,
}

/// `lanes` lanes `lane` bytes apart, in each of them pieces `step` bytes apart, the first of all at `at`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block {
    pub(crate) at: u64,
    pub(crate) lane: u64,
    pub(crate) step: u64,
}

impl Block {
    pub(crate) fn one(at: u64) -> Self {
        Self { at, lane: 0, step: 0 }
    }
}

/// What a peer's request wants to do here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    Write,
    Read,
    Atomic,
}

impl Right {
    pub(crate) fn within(self, access: &Access) -> bool {
        match self {
            Right::Write => access.remote_write,
            Right::Read => access.remote_read,
            Right::Atomic => access.remote_atomic,
        }
    }
}

/// Buffers and registrations.
#[derive(Clone, Debug)]
pub(crate) struct Memory {
    buffers: Vec<Option<Buffer>>,
    /// First address of each buffer that ever was; ascending.
    addrs: Vec<u64>,
    regions: Vec<Option<Region>>,
    lkeys: Map<u32, u32>,
    rkeys: Map<u32, u32>,
    next_addr: u64,
    keys: ChaCha8Rng,
    mistakes: Mistakes,
}

impl Memory {
    /// No buffers yet. Addresses start at `base`, keys come from `keys`.
    pub(crate) fn new(base: u64, keys: ChaCha8Rng) -> Self {
        Self {
            buffers: Vec::new(),
            addrs: Vec::new(),
            regions: Vec::new(),
            lkeys: Map::default(),
            rkeys: Map::default(),
            next_addr: base,
            keys,
            mistakes: Mistakes::default(),
        }
    }

    pub(crate) fn set_mistakes(&mut self, mistakes: Mistakes) {
        self.mistakes = mistakes;
    }

    /// Only what a device that goes on reading needs: the registrations and these buffers.
    pub(crate) fn snapshot(&self, buffers: &[u32]) -> Self {
        let mut copy = Self { buffers: vec![None; self.buffers.len()], ..Self::new(0, self.keys.clone()) };
        for &b in buffers {
            copy.buffers[b as usize] = self.buffers[b as usize].clone();
        }
        copy.regions = self.regions.clone();
        copy.lkeys = self.lkeys.clone();
        copy
    }

    /// Everything is given back at once. Ids, addresses and keys are not used again.
    pub(crate) fn clear(&mut self) {
        self.buffers.iter_mut().for_each(|buffer| *buffer = None);
        self.regions.iter_mut().for_each(|region| *region = None);
        self.lkeys = Map::default();
        self.rkeys = Map::default();
    }

    /// Appends what its buffers hold.
    pub(crate) fn show(&self, into: &mut Vec<u8>) {
        for buffer in self.buffers.iter().flatten() {
            match &buffer.store {
                Store::Bytes(bytes) => into.extend_from_slice(bytes),
                Store::Phantom(phantom) => into.extend(format!("{phantom:?}").into_bytes()),
            }
        }
    }

    fn get(&self, buf: BufId) -> Result<&Buffer> {
        self.buffers.get(buf.index()).and_then(Option::as_ref).ok_or(Error::NoSuch("buffer"))
    }

    pub(crate) fn alloc(&mut self, kind: Kind, grid: Grid) -> Result<BufId> {
        let len = grid.check()?;
        let store = match kind {
            Kind::Host | Kind::HugePages if len > MAX_BYTES => {
                let right = "at most 64 GiB of real bytes: use phantom memory";
                return Err(Error::Invalid { what: "length", value: len, right });
            }
            Kind::Host | Kind::HugePages => Store::Bytes(vec![0; len as usize]),
            Kind::Phantom => Store::Phantom(Phantom::new(&grid)),
            Kind::Adopted { .. } => return Err(Error::Unsupported("adopted memory")),
            Kind::DmaBuf { .. } => return Err(Error::Unsupported("dma-buf memory")),
            Kind::Device { .. } => return Err(Error::Unsupported("device memory")),
        };
        let addr = self.next_addr;
        // A huge page between buffers: running over one's end never reaches the next.
        self.next_addr += (len + (4 << 20)) & !((2 << 20) - 1);
        self.addrs.push(addr);
        self.buffers.push(Some(Buffer { grid, addr, store, regions: 0 }));
        Ok(BufId(self.buffers.len() as u32 - 1))
    }

    pub(crate) fn free(&mut self, buf: BufId) -> Result<()> {
        if self.get(buf)?.regions > 0 {
            return Err(Error::Busy("buffer"));
        }
        self.buffers[buf.index()] = None;
        Ok(())
    }

    fn bytes(&self, buf: BufId, at: u64, len: usize) -> Result<Range<usize>> {
        let size = self.get(buf)?.grid.len();
        match at.checked_add(len as u64) {
            Some(end) if end <= size => Ok(at as usize..end as usize),
            _ => Err(Error::Invalid { what: "offset", value: at, right: "the range lies in the buffer" }),
        }
    }

    pub(crate) fn write(&mut self, buf: BufId, at: u64, bytes: &[u8]) -> Result<()> {
        let range = self.bytes(buf, at, bytes.len())?;
        match self.buffers[buf.index()].as_mut().map(|b| &mut b.store) {
            Some(Store::Bytes(own)) => own[range].copy_from_slice(bytes),
            _ => return Err(Error::Unsupported("bytes in phantom memory")),
        }
        Ok(())
    }

    pub(crate) fn read(&self, buf: BufId, at: u64, bytes: &mut [u8]) -> Result<()> {
        let range = self.bytes(buf, at, bytes.len())?;
        match &self.get(buf)?.store {
            Store::Bytes(own) => bytes.copy_from_slice(&own[range]),
            Store::Phantom(_) => return Err(Error::Unsupported("bytes in phantom memory")),
        }
        Ok(())
    }

    pub(crate) fn stamp(&mut self, buf: BufId, place: &Extent, what: Content) -> Result<()> {
        let grid = self.get(buf)?.grid;
        place.check(&grid)?;
        match self.buffers[buf.index()].as_mut().map(|b| &mut b.store) {
            Some(Store::Bytes(own)) => {
                bytes::stamp(&grid, place, what, |at, from| own[at..at + from.len()].copy_from_slice(from));
            }
            Some(Store::Phantom(own)) => own.stamp(place, what),
            None => {}
        }
        Ok(())
    }

    pub(crate) fn holds(&self, buf: BufId, place: &Extent, what: Content) -> Result<bool> {
        let buffer = self.get(buf)?;
        place.check(&buffer.grid)?;
        Ok(match &buffer.store {
            Store::Bytes(own) => bytes::holds(&buffer.grid, place, what, |at, into| {
                into.copy_from_slice(&own[at..at + into.len()]);
            }),
            Store::Phantom(own) => own.holds(place, what),
        })
    }

    /// Bytes of a buffer.
    pub(crate) fn len(&self, buf: BufId) -> Result<u64> {
        self.get(buf).map(|buffer| buffer.grid.len())
    }

    /// Copies pieces from one buffer to another; where one of them is gone there is nobody to miss the bytes.
    pub(crate) fn copy_within(
        &mut self,
        from: (u32, Block),
        to: (u32, Block),
        lanes: u64,
        len: u64,
        count: u64,
    ) {
        let there = |buf: u32| self.buffers.get(buf as usize).is_some_and(Option::is_some);
        if there(from.0) && there(to.0) {
            within(self, from, to, lanes, len, count);
        }
    }

    pub(crate) fn checksum(&self, buf: BufId, place: &Extent, units: Units) -> Result<u64> {
        let buffer = self.get(buf)?;
        place.check(&buffer.grid)?;
        Ok(match &buffer.store {
            Store::Bytes(own) => bytes::checksum(&buffer.grid, place, units, |at, into| {
                into.copy_from_slice(&own[at..at + into.len()]);
            }),
            Store::Phantom(own) => own.checksum(place, units),
        })
    }

    pub(crate) fn flush(&self, buf: BufId) -> Result<()> {
        self.get(buf).map(|_| ())
    }

    fn draw(keys: &mut ChaCha8Rng, taken: &Map<u32, u32>) -> u32 {
        loop {
            let key = keys.next_u32();
            if key != 0 && !taken.contains(&key) {
                return key;
            }
        }
    }

    pub(crate) fn register(
        &mut self,
        port: PortId,
        buf: BufId,
        span: Range<u64>,
        access: Access,
    ) -> Result<Mr> {
        let buffer = self.get(buf)?;
        if span.start >= span.end || span.end > buffer.grid.len() {
            let right = "a range of the buffer that is not empty";
            return Err(Error::Invalid { what: "span end", value: span.end, right });
        }
        if (access.remote_write || access.remote_atomic) && !access.local_write {
            let right = "remote write and atomic need local write (ibv_reg_mr)";
            return Err(Error::Invalid { what: "access", value: 0, right });
        }
        let addr = buffer.addr + span.start;
        let lkey = Self::draw(&mut self.keys, &self.lkeys);
        let rkey = Self::draw(&mut self.keys, &self.rkeys);
        let id = MrId(self.regions.len() as u32);
        self.lkeys.insert(lkey, id.0);
        self.rkeys.insert(rkey, id.0);
        let mr = Mr { id, addr, len: span.end - span.start, lkey: LKey(lkey), rkey: RKey(rkey) };
        self.regions.push(Some(Region { buf, port, span, addr, access, lkey, rkey }));
        if let Some(buffer) = &mut self.buffers[buf.index()] {
            buffer.regions += 1;
        }
        Ok(mr)
    }

    /// Ends a registration; returns its port and bytes.
    pub(crate) fn deregister(&mut self, mr: MrId) -> Result<(PortId, u64)> {
        let region =
            self.regions.get_mut(mr.index()).and_then(Option::take).ok_or(Error::NoSuch("memory region"))?;
        self.lkeys.remove(&region.lkey);
        if let Some(buffer) = &mut self.buffers[region.buf.index()] {
            buffer.regions -= 1;
        }
        let what = (region.port, region.span.end - region.span.start);
        if self.mistakes.stale_rkeys {
            self.regions[mr.index()] = Some(region);
        } else {
            self.rkeys.remove(&region.rkey);
        }
        Ok(what)
    }

    /// [`Mistakes::range_off_by_one`]: one byte over the end, but not out of the buffer.
    fn runs_over(&self, region: &Region, end: u64) -> bool {
        let size = self.get(region.buf).map_or(0, |buffer| buffer.grid.len());
        end == region.span.end - region.span.start + 1 && region.span.start + end <= size
    }

    fn spot(&self, id: Option<&u32>, port: PortId, addr: u64, len: u64) -> Option<(&Region, Spot)> {
        let region = self.regions[*id? as usize].as_ref()?;
        let offset = addr.checked_sub(region.addr)?;
        let end = offset.checked_add(len)?;
        let size = region.span.end - region.span.start;
        let fits = end <= size || self.mistakes.range_off_by_one && self.runs_over(region, end);
        (region.port == port && fits)
            .then(|| (region, Spot { buf: region.buf.0, at: region.span.start + offset }))
    }

    /// What a local key names, or LOC_PROT.
    pub(crate) fn local(
        &self,
        port: PortId,
        key: LKey,
        addr: u64,
        len: u64,
        write: bool,
    ) -> Result<Spot, Status> {
        match self.spot(self.lkeys.get(&key.0), port, addr, len) {
            Some((region, spot)) if !write || region.access.local_write => Ok(spot),
            _ => Err(Status::LocProt),
        }
    }

    /// What a remote key names here, or REM_ACCESS for the requester.
    pub(crate) fn remote(
        &self,
        port: PortId,
        key: RKey,
        addr: u64,
        len: u64,
        right: Right,
    ) -> Result<Spot, Status> {
        match self.spot(self.rkeys.get(&key.0), port, addr, len) {
            Some((region, spot)) if right.within(&region.access) => Ok(spot),
            _ => Err(Status::RemAccess),
        }
    }

    /// Inline bytes arrive. Phantom memory has no bytes: it forgets what was there.
    pub(crate) fn place(&mut self, spot: Spot, bytes: &[u8]) {
        let Some(buffer) = self.buffers[spot.buf as usize].as_mut() else { return };
        match &mut buffer.store {
            Store::Bytes(own) => own[spot.at as usize..][..bytes.len()].copy_from_slice(bytes),
            Store::Phantom(own) => forget(own, &buffer.grid, spot.at, bytes.len() as u64),
        }
    }

    /// The eight bytes at a spot, for atomics; phantom memory has none.
    pub(crate) fn word(&mut self, spot: Spot) -> Option<&mut [u8]> {
        match &mut self.buffers[spot.buf as usize].as_mut()?.store {
            Store::Bytes(own) => Some(&mut own[spot.at as usize..spot.at as usize + 8]),
            Store::Phantom(_) => None,
        }
    }

    /// Appends the bytes at an address, whatever registration they lie in: inline requests are read by the CPU.
    pub(crate) fn take(&self, addr: u64, len: u64, into: &mut Vec<u8>) -> Result<()> {
        let right = "an address range of one buffer of this host";
        let invalid = Error::Invalid { what: "inline address", value: addr, right };
        if len == 0 {
            return Ok(());
        }
        let at = self.addrs.partition_point(|base| *base <= addr).checked_sub(1);
        let Some(buffer) = at.and_then(|i| self.buffers[i].as_ref()) else { return Err(invalid) };
        let offset = addr - buffer.addr;
        if offset.checked_add(len).is_none_or(|end| end > buffer.grid.len()) {
            return Err(invalid);
        }
        let start = into.len();
        into.resize(start + len as usize, 0);
        match &buffer.store {
            Store::Bytes(own) => {
                into[start..].copy_from_slice(&own[offset as usize..(offset + len) as usize])
            }
            Store::Phantom(own) => materialise(own, &buffer.grid, offset, &mut into[start..]),
        }
        Ok(())
    }

    /// The buffer that a local key names.
    pub(crate) fn buffer_of(&self, key: LKey) -> Option<u32> {
        let id = self.lkeys.get(&key.0)?;
        self.regions[*id as usize].as_ref().map(|r| r.buf.0)
    }

    /// Buffers and registrations that exist.
    pub(crate) fn objects(&self) -> (usize, usize) {
        (self.buffers.iter().flatten().count(), self.regions.iter().flatten().count())
    }
}

impl Buffer {
    /// Changes a bit of the byte at an offset. Phantom memory has none to change: it forgets what the byte was.
    fn flip(&mut self, at: u64) {
        match &mut self.store {
            // Not by XOR: done twice it must not be undone.
            Store::Bytes(own) => own[at as usize] = own[at as usize].wrapping_add(1),
            Store::Phantom(own) => forget(own, &self.grid, at, 1),
        }
    }
}

fn forget(own: &mut Phantom, grid: &Grid, mut at: u64, mut len: u64) {
    while len > 0 {
        let n = len.min(grid.pitch - at % grid.pitch);
        own.forget(&Extent::piece((at / grid.pitch) as u32, at % grid.pitch, n));
        (at, len) = (at + n, len - n);
    }
}

/// The memory of the two ends of a queue pair, which may be one and the same.
pub(crate) struct Sides<'a> {
    pub(crate) local: Local<'a>,
    pub(crate) remote: &'a mut Memory,
}

/// Memory of the requester.
pub(crate) enum Local<'a> {
    /// Another host's.
    Own(&'a mut Memory),
    /// What it was when the queue pair failed: what had left the NIC still arrives.
    Then(&'a Memory),
    /// The responder's host's.
    Same,
}

impl Sides<'_> {
    pub(crate) fn local(&self) -> &Memory {
        match &self.local {
            Local::Own(memory) => memory,
            Local::Then(memory) => memory,
            Local::Same => self.remote,
        }
    }

    /// Requester to responder.
    pub(crate) fn push(&mut self, from: (u32, Block), to: (u32, Block), lanes: u64, len: u64, count: u64) {
        let source = match &self.local {
            Local::Own(memory) => &**memory,
            Local::Then(memory) => memory,
            Local::Same => return within(self.remote, from, to, lanes, len, count),
        };
        between(source, from, self.remote, to, lanes, len, count);
    }

    /// Responder to requester.
    pub(crate) fn pull(&mut self, from: (u32, Block), to: (u32, Block), lanes: u64, len: u64, count: u64) {
        match &mut self.local {
            Local::Own(memory) => between(self.remote, from, memory, to, lanes, len, count),
            Local::Same => within(self.remote, from, to, lanes, len, count),
            // The answer comes to a queue pair that has failed: nobody takes it.
            Local::Then(_) => {}
        }
    }

    /// Writes eight bytes at the requester.
    pub(crate) fn answer(&mut self, spot: Spot, bytes: [u8; 8]) {
        match &mut self.local {
            Local::Own(memory) => memory.place(spot, &bytes),
            Local::Same => self.remote.place(spot, &bytes),
            Local::Then(_) => {}
        }
    }
}

fn between(
    source: &Memory,
    from: (u32, Block),
    target: &mut Memory,
    to: (u32, Block),
    lanes: u64,
    len: u64,
    count: u64,
) {
    let flips = target.mistakes.bits_flipped;
    let (Some(source), Some(target)) =
        (source.buffers[from.0 as usize].as_ref(), target.buffers[to.0 as usize].as_mut())
    else {
        return;
    };
    copy(source, from.1, target, to.1, lanes, len, count);
    if flips && lanes * count * len > FLIPPED_ABOVE {
        target.flip(to.1.at);
    }
}

fn within(memory: &mut Memory, from: (u32, Block), to: (u32, Block), lanes: u64, len: u64, count: u64) {
    let flips = memory.mistakes.copies_flipped;
    let Some(mut target) = memory.buffers[to.0 as usize].take() else { return };
    if from.0 == to.0 {
        let source = target.clone();
        copy(&source, from.1, &mut target, to.1, lanes, len, count);
    } else if let Some(source) = &memory.buffers[from.0 as usize] {
        copy(source, from.1, &mut target, to.1, lanes, len, count);
    }
    if flips {
        target.flip(to.1.at);
    }
    memory.buffers[to.0 as usize] = Some(target);
}

/// Copies lanes of pieces. Ranges were checked when keys were resolved.
fn copy(source: &Buffer, from: Block, target: &mut Buffer, to: Block, lanes: u64, len: u64, count: u64) {
    if let (Store::Phantom(old), Store::Phantom(new)) = (&source.store, &mut target.store) {
        rectangles(old, &source.grid, from, new, &target.grid, to, lanes, len, count);
        return;
    }
    for lane in 0..lanes {
        for k in 0..count {
            let s = from.at + lane * from.lane + k * from.step;
            let d = to.at + lane * to.lane + k * to.step;
            match (&source.store, &mut target.store) {
                (Store::Bytes(old), Store::Bytes(new)) => {
                    new[d as usize..(d + len) as usize].copy_from_slice(&old[s as usize..(s + len) as usize]);
                }
                (Store::Bytes(_), Store::Phantom(new)) => forget(new, &target.grid, d, len),
                (Store::Phantom(old), Store::Bytes(new)) => {
                    materialise(old, &source.grid, s, &mut new[d as usize..(d + len) as usize]);
                }
                (Store::Phantom(_), Store::Phantom(_)) => {}
            }
        }
    }
}

/// Phantom bytes become real ones; unknown ones become zero.
fn materialise(old: &Phantom, grid: &Grid, mut at: u64, mut bytes: &mut [u8]) {
    bytes.fill(0);
    while !bytes.is_empty() {
        let base = at % grid.pitch;
        let n = (bytes.len() as u64).min(grid.pitch - base);
        let (head, rest) = bytes.split_at_mut(n as usize);
        old.known((at / grid.pitch) as u32, base, n, |offset, len, seed, position| {
            Content::fill(seed, position, &mut head[(offset - base) as usize..][..len as usize]);
        });
        (at, bytes) = (at + n, rest);
    }
}

#[allow(clippy::too_many_arguments)]
fn rectangles(
    old: &Phantom,
    og: &Grid,
    from: Block,
    new: &mut Phantom,
    ng: &Grid,
    to: Block,
    lanes: u64,
    len: u64,
    count: u64,
) {
    if lanes == 0 || count == 0 || len == 0 {
        return;
    }
    let (sb, so) = (from.at / og.pitch, from.at % og.pitch);
    let (db, d_o) = (to.at / ng.pitch, to.at % ng.pitch);
    let fits =
        so + (count - 1) * from.step + len <= og.pitch && d_o + (count - 1) * to.step + len <= ng.pitch;
    if fits && (lanes == 1 || from.lane == og.pitch && to.lane == ng.pitch) {
        let a = Pieces { buffer: sb as u32, at: so, step: from.step };
        let b = Pieces { buffer: db as u32, at: d_o, step: to.step };
        new.copy_from(old, a, b, lanes as u32, len, count);
    } else if lanes > 1 {
        for lane in 0..lanes {
            let (a, b) = (
                Block { at: from.at + lane * from.lane, ..from },
                Block { at: to.at + lane * to.lane, ..to },
            );
            rectangles(old, og, a, new, ng, b, 1, len, count);
        }
    } else if count > 1 {
        for k in 0..count {
            let (a, b) = (Block::one(from.at + k * from.step), Block::one(to.at + k * to.step));
            rectangles(old, og, a, new, ng, b, 1, len, 1);
        }
    } else {
        let n = (og.pitch - so).min(ng.pitch - d_o);
        rectangles(old, og, from, new, ng, to, 1, n, 1);
        rectangles(old, og, Block::one(from.at + n), new, ng, Block::one(to.at + n), 1, len - n, 1);
    }
}
