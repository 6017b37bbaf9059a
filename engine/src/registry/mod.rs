//! The registry: one channel for all metadata, and the rendezvous of the two sides of a room.

mod message;

pub use message::{
    Endpoints, Facts, LinkBody, LiveRoom, Member, Message, Outcome, PageList, PageRun, RankFacts, Region,
    Report, Role, RoomKey,
};
