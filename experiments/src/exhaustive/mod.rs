//! Every interleaving of a small scope, over the production nodes.
//!
//! Where a random search asks "does anything go wrong in a million likely orders", a walk asks "is there any order at all". It takes
//! [`engine::node::PrefillNode`] and [`engine::node::DecodeNode`] as every driver runs them, with their transfer engines, page pools and ends
//! of the control channel, and the simulated fabric, and visits every state that two rooms, two queue pairs and one fault can bring them into. In
//! each state the same must hold: no byte of a page or slot changes but for its owner's data, Success stands for all of it, nothing is read
//! from pages that were given back, pages that are out belong to one room each, and where nothing more can happen every room has ended on
//! both sides and nothing is held.
//!
//! **What is ordered freely.** The next message for each side; the next request of each queue pair at its target; ACKs; completions, one by
//! one; deaths that nodes hear of; deadlines, any that is armed; the end of what a side computes; the fault of the scope. Messages between a
//! side and the other are one channel each way, in order, as the sessions with the registry promise; a node gets them in the frames of
//! such a session. The registry itself is left out: what it says of rooms it was told by the other side, it knows both instances' facts,
//! and of one that it declared dead it passes on nothing more. So nobody hears anything from it that the other side did not say, and each
//! side must end by what is left.
//!
//! **What the fabric is.** The simulated one, whose events are taken out of order: [`sim::fabric::Lane`] says which must keep theirs. So there
//! is no second copy of what a NIC does that could be wrong where the first one is right. Its costs are those of an ideal NIC but for ACKs,
//! which take long, so that requests can be executed and not acknowledged when something fails. Clocks of nodes stand still: a deadline
//! passes when its step is taken ([`engine::node::Input::Expire`]), in any order, as nothing may rest on how long deadlines are. Only a
//! lease that runs out, and the end of a step of compute, move the clock of the node, by less than any deadline.
//!
//! **What is not ordered freely**, because it makes no difference or is covered otherwise. Bytes leave a NIC at once: a request that had not
//! left when its queue pair died is one that arrives when nobody takes it any more. The completion of an arrived message stands in its queue
//! at once, and is polled later: what a target does not poll it does not know. ACKs come in the order of execution over both queue
//! pairs. Prefill computes as soon as it has pages but for scopes that say otherwise, and decode generates only in those where it keeps
//! its pages; more than one room cannot be in either step, as there is one page.
//!
//! **States** are told apart by what they can still see: both nodes in full (their `Debug` leaves out what is constant or worked out, and
//! sequence numbers of their sessions), queue pairs, completion queues, every byte of memory, messages under way. Not by times, nor by
//! statistics. A fingerprint of 128 bits stands for a state. The walk is breadth first, so the first violation has a shortest path; a state
//! is not stored but made again from the steps that lead to it. Steps on different hosts that commute lead to the same state and
//! cost an edge each, but no state.

mod act;
mod base;
mod cell;
mod channel;
mod check;
mod nodes;
mod scope;
mod search;
mod state;
mod step;

pub use scope::{SCOPES, Scope};
pub use search::{Found, Limits, Outcome, walk};
pub use step::{Side, Step};
