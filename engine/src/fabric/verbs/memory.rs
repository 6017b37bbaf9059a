//! Buffers and their registrations.
//!
//! The device writes into this memory while the program runs, so no Rust reference to it ever exists: bytes are copied through
//! pointers, in ranges that were checked.

use super::sys;
use crate::fabric::{
    Access, Content, Error, Extent, Grid, LocalCopy, Memory as Kind, Mr, Result, Units, bytes,
};
use crate::id::{BufId, LKey, MrId, RKey};
use ibverbs_sys as ffi;
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::ptr::null_mut;

/// Bytes of a huge page on x86-64, and on ARM with base pages of 4 KiB.
const HUGE: usize = 2 << 20;

/// Where a buffer's bytes are.
enum Place {
    /// Mapped here; unmapped with the buffer.
    Mapped { addr: *mut u8, mapped: usize },
    /// Somebody else's.
    Adopted { addr: *mut u8 },
    /// Device memory that the CPU does not see.
    DmaBuf { fd: c_int, offset: u64 },
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Place::Mapped { addr, mapped } = *self {
            // SAFETY: this mapping was made by `map`, registrations of it are gone, and no reference into it exists.
            // It cannot fail for a range that was mapped.
            let _ = unsafe { rustix::mm::munmap(addr.cast(), mapped) };
        }
    }
}

/// Maps fresh memory, on huge pages if asked for and there are any.
fn map(len: usize, huge: bool) -> Result<Place> {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    let failed = |e: rustix::io::Errno| Error::System {
        call: "mmap",
        errno: e.raw_os_error(),
        advice: "the host has not that much memory left",
    };
    if huge && let Some(mapped) = len.checked_next_multiple_of(HUGE) {
        // SAFETY: a new mapping, at an address of the system's choice.
        let addr = unsafe {
            rustix::mm::mmap_anonymous(null_mut(), mapped, access, MapFlags::PRIVATE | MapFlags::HUGETLB)
        };
        if let Ok(addr) = addr {
            return Ok(Place::Mapped { addr: addr.cast(), mapped });
        }
    }
    // SAFETY: as above.
    let addr = unsafe { rustix::mm::mmap_anonymous(null_mut(), len, access, MapFlags::PRIVATE) };
    let addr = addr.map_err(failed)?;
    if huge {
        // SAFETY: the range was just mapped. Transparent huge pages are a wish: refused, all stays as it is.
        let _ = unsafe { rustix::mm::madvise(addr, len, Advice::LinuxHugepage) };
    }
    Ok(Place::Mapped { addr: addr.cast(), mapped: len })
}

struct Buffer {
    grid: Grid,
    len: u64,
    place: Place,
    regions: u32,
}

struct Region {
    buf: BufId,
    mr: sys::Region,
}

/// All buffers and registrations of a fabric.
#[derive(Default)]
pub(super) struct Memory {
    // Before the buffers, so that they are given back first.
    regions: Vec<Option<Region>>,
    buffers: Vec<Option<Buffer>>,
    /// First address and bytes of every buffer that the CPU sees.
    mapped: BTreeMap<u64, u64>,
}

impl Memory {
    fn get(&self, buf: BufId) -> Result<&Buffer> {
        self.buffers.get(buf.index()).and_then(Option::as_ref).ok_or(Error::NoSuch("buffer"))
    }

    /// Buffers and registrations that exist.
    pub(super) fn objects(&self) -> (usize, usize) {
        (self.buffers.iter().flatten().count(), self.regions.iter().flatten().count())
    }

    pub(super) fn alloc(&mut self, kind: Kind, grid: Grid) -> Result<BufId> {
        let len = grid.check()?;
        let invalid = |what, value, right| Err(Error::Invalid { what, value, right });
        let Ok(size) = isize::try_from(len) else {
            return invalid("length", len, "a buffer fits into the address space");
        };
        let place = match kind {
            Kind::Host => map(size as usize, false)?,
            Kind::HugePages => map(size as usize, true)?,
            Kind::Adopted { addr } => {
                if addr == 0 || addr.checked_add(len).is_none() {
                    return invalid(
                        "address",
                        addr,
                        "the first byte of mapped memory of the buffer's length",
                    );
                }
                Place::Adopted { addr: addr as usize as *mut u8 }
            }
            Kind::DmaBuf { fd, offset } => {
                if fd < 0 || offset.checked_add(len).is_none() {
                    return invalid(
                        "dma-buf",
                        fd as u32 as u64,
                        "an open descriptor, and an offset within it",
                    );
                }
                Place::DmaBuf { fd, offset }
            }
            Kind::Device { .. } => return Err(Error::Unsupported("device memory: export it as a dma-buf")),
            Kind::Phantom => return Err(Error::Unsupported("phantom memory")),
        };
        if let Place::Mapped { addr, .. } | Place::Adopted { addr } = place {
            self.mapped.insert(addr as u64, len);
        }
        self.buffers.push(Some(Buffer { grid, len, place, regions: 0 }));
        Ok(BufId(self.buffers.len() as u32 - 1))
    }

    pub(super) fn free(&mut self, buf: BufId) -> Result<()> {
        let buffer = self.get(buf)?;
        if buffer.regions > 0 {
            return Err(Error::Busy("buffer"));
        }
        if let Place::Mapped { addr, .. } | Place::Adopted { addr } = buffer.place {
            self.mapped.remove(&(addr as u64));
        }
        self.buffers[buf.index()] = None;
        Ok(())
    }

    /// Whether the CPU may read this range: it lies in one buffer.
    pub(super) fn sees(&self, addr: u64, len: u64) -> bool {
        let before = self.mapped.range(..=addr).next_back();
        len == 0
            || before
                .is_some_and(|(base, size)| (addr - base).checked_add(len).is_some_and(|end| end <= *size))
    }

    /// The first byte, for the CPU.
    fn bytes(&self, buf: BufId) -> Result<(&Buffer, *mut u8)> {
        let buffer = self.get(buf)?;
        match buffer.place {
            Place::Mapped { addr, .. } | Place::Adopted { addr } => Ok((buffer, addr)),
            Place::DmaBuf { .. } => Err(Error::Unsupported("bytes of dma-buf memory for the CPU")),
        }
    }

    fn range(&self, buf: BufId, at: u64, len: usize) -> Result<*mut u8> {
        let (buffer, addr) = self.bytes(buf)?;
        match at.checked_add(len as u64) {
            // SAFETY: the range lies in the buffer.
            Some(end) if end <= buffer.len => Ok(unsafe { addr.add(at as usize) }),
            _ => Err(Error::Invalid { what: "offset", value: at, right: "the range lies in the buffer" }),
        }
    }

    pub(super) fn write(&mut self, buf: BufId, at: u64, from: &[u8]) -> Result<()> {
        let into = self.range(buf, at, from.len())?;
        // SAFETY: the range lies in the buffer, which no Rust reference covers; `from` is one, so they do not overlap. Adopted
        // memory is mapped as long as the buffer lives: its owner has promised.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into, from.len()) };
        Ok(())
    }

    pub(super) fn read(&self, buf: BufId, at: u64, into: &mut [u8]) -> Result<()> {
        let from = self.range(buf, at, into.len())?;
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) };
        Ok(())
    }

    pub(super) fn stamp(&mut self, buf: BufId, place: &Extent, what: Content) -> Result<()> {
        let (buffer, base) = self.bytes(buf)?;
        place.check(&buffer.grid)?;
        bytes::stamp(&buffer.grid, place, what, |at, from| {
            // SAFETY: the place was checked against the grid, which the buffer covers; else as in `write`.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), base.add(at), from.len()) }
        });
        Ok(())
    }

    pub(super) fn checksum(&self, buf: BufId, place: &Extent, units: Units) -> Result<u64> {
        let (buffer, base) = self.bytes(buf)?;
        place.check(&buffer.grid)?;
        Ok(bytes::checksum(&buffer.grid, place, units, |at, into| {
            // SAFETY: the place was checked against the grid, which the buffer covers; else as in `write`.
            unsafe { std::ptr::copy_nonoverlapping(base.add(at).cast_const(), into.as_mut_ptr(), into.len()) }
        }))
    }

    pub(super) fn holds(&self, buf: BufId, place: &Extent, what: Content) -> Result<bool> {
        let (buffer, base) = self.bytes(buf)?;
        place.check(&buffer.grid)?;
        Ok(bytes::holds(&buffer.grid, place, what, |at, into| {
            // SAFETY: as in `stamp`.
            unsafe { std::ptr::copy_nonoverlapping(base.add(at), into.as_mut_ptr(), into.len()) }
        }))
    }

    pub(super) fn copy(&mut self, parts: &[LocalCopy<'_>]) -> Result<()> {
        for part in parts {
            let (from, to) = (self.bytes(part.from.0)?.0.len, self.bytes(part.to.0)?.0.len);
            part.check(from, to)?;
        }
        for part in parts {
            let ((_, from), (_, to)) = (self.bytes(part.from.0)?, self.bytes(part.to.0)?);
            part.for_each(|at, into, len| {
                // SAFETY: `check` has put every piece into its buffer, and the buffers are two, which no Rust reference covers. Two adopted
                // ones may be the same memory, so the pieces may overlap; else as in `write`.
                unsafe { std::ptr::copy(from.add(at as usize), to.add(into as usize), len as usize) }
            });
        }
        Ok(())
    }

    pub(super) fn flush(&self, buf: BufId) -> Result<()> {
        // Host memory is coherent with PCIe writes. What a dma-buf's exporter needs beyond a completion is its owner's business.
        self.get(buf).map(|_| ())
    }

    pub(super) fn register(
        &mut self,
        device: &sys::Context,
        buf: BufId,
        span: Range<u64>,
        access: Access,
        relaxed: bool,
    ) -> Result<Mr> {
        let buffer = self.get(buf)?;
        if span.start >= span.end || span.end > buffer.len {
            let right = "a range of the buffer that is not empty";
            return Err(Error::Invalid { what: "span end", value: span.end, right });
        }
        if (access.remote_write || access.remote_atomic) && !access.local_write {
            let right = "remote write and atomic need local write (ibv_reg_mr)";
            return Err(Error::Invalid { what: "access", value: 0, right });
        }
        let mut flags = super::qp::access_flags(access).0 as c_int;
        if relaxed {
            // Optional: libibverbs drops it where the kernel does not know it.
            flags |= ffi::ibv_access_flags::IBV_ACCESS_RELAXED_ORDERING.0 as c_int;
        }
        let len = span.end - span.start;
        let (call, addr, mr) = match buffer.place {
            Place::Mapped { addr, .. } | Place::Adopted { addr } => {
                // SAFETY: the span lies in the buffer, which outlives its registrations (`free` refuses, fields drop in order).
                let (start, mr) = unsafe {
                    let start = addr.add(span.start as usize);
                    (start, ffi::ibv_reg_mr(device.pd, start.cast::<c_void>(), len as usize, flags))
                };
                ("ibv_reg_mr", start as u64, sys::Region::new(mr))
            }
            Place::DmaBuf { fd, offset } => {
                let at = offset + span.start;
                // Work requests name its bytes by their offset in the dma-buf.
                // SAFETY: the descriptor is a number to the kernel, which checks it and keeps its own reference.
                let mr = unsafe { ffi::ibv_reg_dmabuf_mr(device.pd, at, len as usize, at, fd, flags) };
                ("ibv_reg_dmabuf_mr", at, sys::Region::new(mr))
            }
        };
        let mr = mr.map_err(|errno| {
            let unsupported = rustix::io::Errno::OPNOTSUPP.raw_os_error();
            match call {
                "ibv_reg_dmabuf_mr" if errno == unsupported => Error::Unsupported("dma-buf registration"),
                _ => Error::System { call, errno, advice: sys::advice(errno) },
            }
        })?;
        // SAFETY: the registration is valid.
        let (lkey, rkey) = unsafe { ((*mr.raw()).lkey, (*mr.raw()).rkey) };
        let id = MrId(self.regions.len() as u32);
        self.regions.push(Some(Region { buf, mr }));
        if let Some(buffer) = &mut self.buffers[buf.index()] {
            buffer.regions += 1;
        }
        Ok(Mr { id, addr, len, lkey: LKey(lkey), rkey: RKey(rkey) })
    }

    pub(super) fn deregister(&mut self, id: MrId) -> Result<()> {
        let slot = self.regions.get_mut(id.index()).ok_or(Error::NoSuch("memory region"))?;
        let region = slot.take().ok_or(Error::NoSuch("memory region"))?;
        let buf = region.buf;
        if let Err((mr, errno)) = region.mr.destroy() {
            *slot = Some(Region { buf, mr });
            return Err(Error::System { call: "ibv_dereg_mr", errno, advice: "" });
        }
        if let Some(buffer) = &mut self.buffers[buf.index()] {
            buffer.regions -= 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::{Lane, Plan, Run};
    use std::sync::Arc;

    #[test]
    fn copies_move_their_pieces_and_nothing_else() {
        let mut memory = Memory::default();
        let (a, b) = (
            memory.alloc(Kind::Host, Grid::bytes(64)).unwrap(),
            memory.alloc(Kind::Host, Grid::bytes(64)).unwrap(),
        );
        memory.write(a, 0, &std::array::from_fn::<u8, 64, _>(|i| i as u8 + 1)).unwrap();
        let run = Run {
            local: 2,
            remote: 0,
            len: 3,
            count: 2,
            local_step: 8,
            remote_step: 3,
            gather: 1,
            joins: false,
        };
        let lanes = [Lane { local: 0, remote: 0 }, Lane { local: 32, remote: 10 }].into_iter().collect();
        let plan = Arc::new(Plan::new(lanes, vec![run]).unwrap());
        memory.copy(&[LocalCopy { plan: &plan, from: (a, 0), to: (b, 4) }]).unwrap();
        let mut want = [0; 64];
        want[4..10].copy_from_slice(&[3, 4, 5, 11, 12, 13]);
        want[14..20].copy_from_slice(&[35, 36, 37, 43, 44, 45]);
        let mut got = [0; 64];
        memory.read(b, 0, &mut got).unwrap();
        assert_eq!(got, want);
        assert!(memory.copy(&[LocalCopy { plan: &plan, from: (a, 20), to: (b, 4) }]).is_err());
        assert!(memory.copy(&[LocalCopy { plan: &plan, from: (a, 0), to: (a, 4) }]).is_err());
    }
}
