//! What of libibverbs is used, as owners that give back what they hold, and calls that return errors.
//!
//! Every pointer in these types is one that libibverbs returned, is not null, and is given back exactly once, in `drop`. The
//! order in which that must happen (queue pairs before their queues, all before the device) is kept by [`super::VerbsFabric`].

use ibverbs_sys as ffi;
use std::ffi::{CStr, c_int, c_void};
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::null_mut;

/// An error number of the last call of libibverbs that said "look at errno".
pub(super) fn last() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(rustix::io::Errno::IO.raw_os_error())
}

/// What usually mends an error of a call that needs memory or rights.
pub(super) fn advice(errno: i32) -> &'static str {
    match rustix::io::Errno::from_raw_os_error(errno) {
        rustix::io::Errno::NOMEM => {
            "the device's room, or the limit of locked memory, is used up: see ulimit -l, or ask for less"
        }
        rustix::io::Errno::ACCESS | rustix::io::Errno::PERM => {
            "the user may not use the device: see the rights of /dev/infiniband/uverbs*"
        }
        rustix::io::Errno::FAULT => "the memory is not mapped, or not with the rights asked for",
        _ => "",
    }
}

/// The answer of a call that returns an error number.
pub(super) fn check(errno: c_int) -> Result<(), i32> {
    if errno == 0 { Ok(()) } else { Err(errno) }
}

/// The devices of this host.
pub(super) struct DeviceList {
    list: *mut *mut ffi::ibv_device,
    count: usize,
}

impl DeviceList {
    pub(super) fn get() -> Result<Self, i32> {
        let mut count = 0;
        // SAFETY: `count` is a valid place for the result.
        let list = unsafe { ffi::ibv_get_device_list(&mut count) };
        if list.is_null() { Err(last()) } else { Ok(Self { list, count: count.max(0) as usize }) }
    }

    /// Name and place of each.
    pub(super) fn devices(&self) -> impl Iterator<Item = (String, *mut ffi::ibv_device)> {
        (0..self.count).map(|i| {
            // SAFETY: the list has `count` entries which are valid until it is freed; a device's name is a C string.
            let (device, name) = unsafe {
                let device = *self.list.add(i);
                (device, CStr::from_ptr(ffi::ibv_get_device_name(device)))
            };
            (name.to_string_lossy().into_owned(), device)
        })
    }
}

impl Drop for DeviceList {
    fn drop(&mut self) {
        // SAFETY: made by ibv_get_device_list. Devices that were opened live on.
        unsafe { ffi::ibv_free_device_list(self.list) };
    }
}

/// An open device with a protection domain and a completion channel.
pub(super) struct Context {
    pub(super) ctx: *mut ffi::ibv_context,
    pub(super) pd: *mut ffi::ibv_pd,
    pub(super) channel: *mut ffi::ibv_comp_channel,
}

/// A call that failed, and its error number.
pub(super) type Failure = (&'static str, i32);

impl Context {
    /// Opens a device of a list that still exists.
    pub(super) fn open(device: *mut ffi::ibv_device) -> Result<Self, Failure> {
        // SAFETY: the caller's list keeps the device valid.
        let ctx = unsafe { ffi::ibv_open_device(device) };
        if ctx.is_null() {
            return Err(("ibv_open_device", last()));
        }
        let mut own = Self { ctx, pd: null_mut(), channel: null_mut() };
        // SAFETY: the context is open.
        own.pd = unsafe { ffi::ibv_alloc_pd(ctx) };
        if own.pd.is_null() {
            return Err(("ibv_alloc_pd", last()));
        }
        // SAFETY: as above.
        own.channel = unsafe { ffi::ibv_create_comp_channel(ctx) };
        if own.channel.is_null() {
            return Err(("ibv_create_comp_channel", last()));
        }
        for fd in [own.completion_fd(), own.event_fd()] {
            // SAFETY: both descriptors belong to the open context.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            let flags = rustix::fs::fcntl_getfl(fd).map_err(|e| ("fcntl", e.raw_os_error()))?;
            rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)
                .map_err(|e| ("fcntl", e.raw_os_error()))?;
        }
        Ok(own)
    }

    pub(super) fn completion_fd(&self) -> RawFd {
        // SAFETY: the channel is valid as long as self.
        unsafe { (*self.channel).fd }
    }

    pub(super) fn event_fd(&self) -> RawFd {
        // SAFETY: the context is valid as long as self.
        unsafe { (*self.ctx).async_fd }
    }

    pub(super) fn attributes(&self) -> Result<ffi::ibv_device_attr, i32> {
        let mut attr = ffi::ibv_device_attr::default();
        // SAFETY: context and place are valid.
        check(unsafe { ffi::ibv_query_device(self.ctx, &mut attr) })?;
        Ok(attr)
    }

    pub(super) fn port(&self, number: u8) -> Result<ffi::ibv_port_attr, i32> {
        let mut attr = ffi::ibv_port_attr::default();
        // SAFETY: the exported function writes the first 48 bytes of ibv_port_attr, up to and with `flags`; the type of its
        // argument only stands for that shorter structure (verbs.h, `_compat_ibv_port_attr`).
        check(unsafe { ffi::ibv_query_port(self.ctx, number, (&raw mut attr).cast()) })?;
        Ok(attr)
    }

    /// The valid entries of all ports' address tables.
    pub(super) fn gids(&self, most: usize) -> Result<Vec<ffi::ibv_gid_entry>, i32> {
        let mut entries = vec![ffi::ibv_gid_entry::default(); most];
        // SAFETY: the table has room for `most` entries of the size given.
        let n = unsafe {
            ffi::_ibv_query_gid_table(
                self.ctx,
                entries.as_mut_ptr(),
                most,
                0,
                size_of::<ffi::ibv_gid_entry>(),
            )
        };
        if n < 0 {
            return Err(-n as i32);
        }
        entries.truncate(n as usize);
        Ok(entries)
    }

    pub(super) fn pkey(&self, port: u8, index: u16) -> Result<u16, i32> {
        let mut pkey = 0;
        // SAFETY: context and place are valid.
        match unsafe { ffi::ibv_query_pkey(self.ctx, port, index.into(), &mut pkey) } {
            0 => Ok(u16::from_be(pkey)),
            _ => Err(last()),
        }
    }

    /// Whether a registration of dma-buf memory is known to the device: a descriptor that does not exist is then the error.
    pub(super) fn has_dmabuf(&self) -> bool {
        // SAFETY: nothing is registered, as descriptor -1 is never open.
        let mr = unsafe { ffi::ibv_reg_dmabuf_mr(self.pd, 0, 4096, 0, -1, 0) };
        if !mr.is_null() {
            // SAFETY: it was just made.
            unsafe { ffi::ibv_dereg_mr(mr) };
            return true;
        }
        let errno = rustix::io::Errno::from_raw_os_error(last());
        !matches!(errno, rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::PROTONOSUPPORT)
    }

    /// Whether memory can be registered without being pinned: tried on one page.
    pub(super) fn has_on_demand_paging(&self) -> bool {
        let page = vec![0u8; 8192];
        let flags = ffi::ibv_access_flags::IBV_ACCESS_ON_DEMAND.0 as c_int;
        // SAFETY: the page outlives its registration, which nobody gets to know.
        unsafe {
            let mr = ffi::ibv_reg_mr(self.pd, page.as_ptr() as *mut c_void, page.len(), flags);
            !mr.is_null() && ffi::ibv_dereg_mr(mr) == 0
        }
    }

    /// Inline bytes that a small queue pair gets.
    pub(super) fn max_inline(&self) -> u32 {
        // SAFETY: the queue lives on this context and is destroyed below, after the queue pairs on it.
        let cq = unsafe { ffi::ibv_create_cq(self.ctx, 1, null_mut(), null_mut(), 0) };
        if cq.is_null() {
            return 0;
        }
        let mut granted = 0;
        for ask in [4096, 2048, 1024, 512, 256, 128, 64, 32] {
            let mut init = ffi::ibv_qp_init_attr {
                send_cq: cq,
                recv_cq: cq,
                cap: ffi::ibv_qp_cap {
                    max_send_wr: 1,
                    max_recv_wr: 1,
                    max_send_sge: 1,
                    max_recv_sge: 1,
                    max_inline_data: ask,
                },
                qp_type: ffi::ibv_qp_type::IBV_QPT_RC,
                ..Default::default()
            };
            // SAFETY: the attributes name a queue of the same context; the queue pair is destroyed at once.
            unsafe {
                let qp = ffi::ibv_create_qp(self.pd, &mut init);
                if !qp.is_null() {
                    ffi::ibv_destroy_qp(qp);
                    granted = init.cap.max_inline_data;
                    break;
                }
            }
        }
        // SAFETY: nothing uses it any more.
        unsafe { ffi::ibv_destroy_cq(cq) };
        granted
    }

    /// Takes completion events off the channel and acknowledges them.
    pub(super) fn take_completion_events(&self) {
        loop {
            let (mut cq, mut tag) = (null_mut(), null_mut());
            // SAFETY: the channel does not block; an event's queue exists, because destroying it takes its events away.
            unsafe {
                if ffi::ibv_get_cq_event(self.channel, &mut cq, &mut tag) != 0 {
                    return;
                }
                ffi::ibv_ack_cq_events(cq, 1);
            }
        }
    }

    /// The next asynchronous event, acknowledged: its kind, and the object's tag or the port's number.
    pub(super) fn take_event(&self) -> Option<(ffi::ibv_event_type, usize)> {
        let mut event = ffi::ibv_async_event::default();
        // SAFETY: the descriptor does not block. The kind says which element is valid; objects of events exist until the event is
        // acknowledged, and their tag is what they were made with.
        unsafe {
            if ffi::ibv_get_async_event(self.ctx, &mut event) != 0 {
                return None;
            }
            let tag = match event.event_type {
                ffi::IBV_EVENT_CQ_ERR => (*event.element.cq).cq_context as usize,
                ffi::IBV_EVENT_QP_FATAL
                | ffi::IBV_EVENT_QP_REQ_ERR
                | ffi::IBV_EVENT_QP_ACCESS_ERR
                | ffi::IBV_EVENT_QP_LAST_WQE_REACHED => (*event.element.qp).qp_context as usize,
                ffi::IBV_EVENT_SRQ_ERR | ffi::IBV_EVENT_SRQ_LIMIT_REACHED => {
                    (*event.element.srq).srq_context as usize
                }
                ffi::IBV_EVENT_PORT_ACTIVE
                | ffi::IBV_EVENT_PORT_ERR
                | ffi::IBV_EVENT_LID_CHANGE
                | ffi::IBV_EVENT_GID_CHANGE
                | ffi::IBV_EVENT_CLIENT_REREGISTER => event.element.port_num.max(0) as usize,
                _ => 0,
            };
            ffi::ibv_ack_async_event(&mut event);
            Some((event.event_type, tag))
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: each was made once; whatever was made on them has been destroyed before (see the module's text).
        unsafe {
            if !self.channel.is_null() {
                ffi::ibv_destroy_comp_channel(self.channel);
            }
            if !self.pd.is_null() {
                ffi::ibv_dealloc_pd(self.pd);
            }
            ffi::ibv_close_device(self.ctx);
        }
    }
}

macro_rules! owner {
    ($(#[$doc:meta])* $name:ident, $raw:ty, $destroy:path) => {
        $(#[$doc])*
        pub(super) struct $name(*mut $raw);
        impl $name {
            /// Takes over what a call returned, or its error.
            pub(super) fn new(raw: *mut $raw) -> Result<Self, i32> {
                if raw.is_null() { Err(last()) } else { Ok(Self(raw)) }
            }
            pub(super) fn raw(&self) -> *mut $raw {
                self.0
            }
            /// Destroys it now; on failure it still exists.
            pub(super) fn destroy(self) -> Result<(), (Self, i32)> {
                // SAFETY: made by libibverbs, destroyed once: `drop` does not run after success.
                match unsafe { $destroy(self.0) } {
                    0 => {
                        std::mem::forget(self);
                        Ok(())
                    }
                    errno => Err((self, errno)),
                }
            }
        }
        impl Drop for $name {
            fn drop(&mut self) {
                // SAFETY: made by libibverbs, and not destroyed before.
                unsafe { $destroy(self.0) };
            }
        }
    };
}

owner!(
    /// A registration.
    Region, ffi::ibv_mr, ffi::ibv_dereg_mr
);
owner!(
    /// A completion queue.
    Completions, ffi::ibv_cq, ffi::ibv_destroy_cq
);
owner!(
    /// A shared receive queue.
    Shared, ffi::ibv_srq, ffi::ibv_destroy_srq
);
owner!(
    /// A queue pair.
    Pair, ffi::ibv_qp, ffi::ibv_destroy_qp
);

impl Completions {
    /// Takes completions off the queue.
    pub(super) fn poll(&self, into: &mut [ffi::ibv_wc]) -> usize {
        let cq = self.raw();
        // SAFETY: the queue is valid and the slice has room for as many as it is long. Every driver fills in poll_cq.
        let n = unsafe {
            match (*(*cq).context).ops.poll_cq {
                Some(poll) => poll(cq, into.len() as c_int, into.as_mut_ptr()),
                None => 0,
            }
        };
        n.max(0) as usize
    }

    /// Asks for an event at the next completion.
    pub(super) fn arm(&self) -> Result<(), i32> {
        let cq = self.raw();
        // SAFETY: the queue is valid.
        unsafe {
            match (*(*cq).context).ops.req_notify_cq {
                Some(arm) => check(arm(cq, 0)),
                None => Err(rustix::io::Errno::OPNOTSUPP.raw_os_error()),
            }
        }
    }
}

impl Pair {
    pub(super) fn number(&self) -> u32 {
        // SAFETY: the queue pair is valid.
        unsafe { (*self.raw()).qp_num }
    }

    pub(super) fn modify(&self, attr: &mut ffi::ibv_qp_attr, mask: ffi::ibv_qp_attr_mask) -> Result<(), i32> {
        // SAFETY: the queue pair and the attributes are valid.
        check(unsafe { ffi::ibv_modify_qp(self.raw(), attr, mask.0 as c_int) })
    }

    /// The state that the device has it in.
    pub(super) fn state(&self) -> Result<ffi::ibv_qp_state::Type, i32> {
        let mut attr = ffi::ibv_qp_attr::default();
        let mut init = ffi::ibv_qp_init_attr::default();
        let mask = ffi::ibv_qp_attr_mask::IBV_QP_STATE.0 as c_int;
        // SAFETY: the queue pair and both places are valid.
        check(unsafe { ffi::ibv_query_qp(self.raw(), &mut attr, mask, &mut init) })?;
        Ok(attr.qp_state)
    }
}
