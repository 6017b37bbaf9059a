//! Fields of a message, read from bytes that may be anything.

use super::frame::FrameError;
use super::message::{Role, RoomKey};
use crate::id::{InstanceId, Room};
use crate::node::Reason;

/// Reads fields off the front of a message.
pub(super) struct Reader<'a> {
    pub(super) left: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn bytes(&mut self, field: &'static str, need: usize) -> Result<&'a [u8], FrameError> {
        let (head, rest) = self.left.split_at_checked(need).ok_or(FrameError::Truncated {
            field,
            need,
            left: self.left.len(),
        })?;
        self.left = rest;
        Ok(head)
    }
    #[inline]
    pub(super) fn byte(&mut self, field: &'static str) -> Result<u8, FrameError> {
        let (&byte, rest) =
            self.left.split_first().ok_or(FrameError::Truncated { field, need: 1, left: 0 })?;
        self.left = rest;
        Ok(byte)
    }
    #[inline]
    pub(super) fn u64(&mut self, field: &'static str) -> Result<u64, FrameError> {
        let first = self.byte(field)?;
        if first < 0x80 {
            return Ok(first.into());
        }
        let mut value = u64::from(first & 0x7f);
        for shift in (7..64).step_by(7) {
            let byte = self.byte(field)?;
            if shift == 63 && byte > 1 {
                return Err(FrameError::Value { field, value: byte.into(), right: "64 bits at most" });
            }
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(FrameError::Value { field, value, right: "64 bits at most" })
    }
    pub(super) fn u32(&mut self, field: &'static str) -> Result<u32, FrameError> {
        let value = self.u64(field)?;
        u32::try_from(value).map_err(|_| FrameError::Value { field, value, right: "32 bits at most" })
    }
    pub(super) fn u16(&mut self, field: &'static str) -> Result<u16, FrameError> {
        let value = self.u64(field)?;
        u16::try_from(value).map_err(|_| FrameError::Value { field, value, right: "16 bits at most" })
    }
    pub(super) fn bool(&mut self, field: &'static str) -> Result<bool, FrameError> {
        match self.byte(field)? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(FrameError::Value { field, value: value.into(), right: "0 or 1" }),
        }
    }
    /// A count of things that take at least `each` bytes.
    pub(super) fn count(&mut self, field: &'static str, max: u64, each: usize) -> Result<usize, FrameError> {
        let value = self.u64(field)?;
        if value > max {
            return Err(FrameError::TooLong { field, value, max });
        }
        let count = value as usize;
        if count * each > self.left.len() {
            return Err(FrameError::Truncated { field, need: count * each, left: self.left.len() });
        }
        Ok(count)
    }
    pub(super) fn fixed<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], FrameError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(field, N)?);
        Ok(array)
    }
    pub(super) fn reason(&mut self) -> Result<Reason, FrameError> {
        let byte = self.byte("reason")?;
        Reason::from_wire(byte).ok_or(FrameError::Value {
            field: "reason",
            value: byte.into(),
            right: "0 to 13",
        })
    }
    pub(super) fn key(&mut self) -> Result<RoomKey, FrameError> {
        let mut room = [0; 8];
        room.copy_from_slice(self.bytes("room", 8)?);
        Ok(RoomKey { room: Room(u64::from_le_bytes(room)), attempt: self.u32("attempt")? })
    }
    pub(super) fn instance(&mut self) -> Result<InstanceId, FrameError> {
        self.u64("instance").map(InstanceId)
    }
    pub(super) fn role(&mut self) -> Result<Role, FrameError> {
        match self.byte("role")? {
            0 => Ok(Role::Router),
            1 => Ok(Role::Prefill),
            2 => Ok(Role::Decode),
            value => Err(FrameError::Value { field: "role", value: value.into(), right: "0 to 2" }),
        }
    }
}
