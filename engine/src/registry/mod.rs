//! The registry: one channel for all metadata, and the rendezvous of the two sides of a room.

mod client;
mod frame;
mod lease;
mod message;
mod reader;
mod relay;
mod room;
mod server;
mod session;
mod wire;

#[cfg(test)]
mod tests;

pub use client::{Client, ClientEvent, ClientStats, REGISTRY};
pub use frame::{Frame, FrameError, FrameFlags, HEADER, Header, MAX_FRAME, MAX_MESSAGE, VERSION};
pub use message::{
    Endpoints, Facts, LinkBody, LiveRoom, Member, Message, Outcome, PageList, PageRun, Piece, RankFacts,
    Region, Report, Role, RoomKey, SHORT, Timing,
};
pub use server::{Registry, RegistryConfig, RegistryLimits, RegistryStats};
pub use session::{Session, SessionConfig, SessionStats};
pub use wire::{decode, encode};
