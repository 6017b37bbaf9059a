//! One end of the control channel: a ROUTER for the registry, a DEALER for every other node.

use super::identity::{Identity, IdentityError, MAX_NODES, number};
use crate::id::NodeId;
use crate::registry::{MAX_FRAME, REGISTRY};
use crate::time::{Span, Time};
use zmq::{Context, DONTWAIT, Message, SNDMORE, Socket, SocketType};

/// Bounds of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkConfig {
    /// Frames that wait for one peer to take them, at most (`ZMQ_SNDHWM`).
    pub send_queue: u16,
    /// Frames that came from one peer and wait to be taken, at most (`ZMQ_RCVHWM`).
    pub receive_queue: u16,
    /// How long a socket that is closed goes on sending what waits (`ZMQ_LINGER`).
    pub linger: Span,
    /// Silence after which another process may come under the number of one with another name.
    pub silence: Span,
}

impl Default for LinkConfig {
    fn default() -> Self {
        Self { send_queue: 8192, receive_queue: 8192, linger: Span::ms(500), silence: Span::s(30) }
    }
}

/// Why there is no control channel.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The address cannot be bound.
    #[error("cannot bind {address}: {why}{}", bind_hint(*.why))]
    Bind {
        /// Where.
        address: String,
        /// What ZeroMQ said.
        why: zmq::Error,
    },
    /// The address is none.
    #[error("cannot connect to {address}: {why}; expected tcp://HOST:PORT or ipc://PATH")]
    Connect {
        /// Where to.
        address: String,
        /// What ZeroMQ said.
        why: zmq::Error,
    },
    /// The address has no port that there is.
    #[error("`{0}` is no address: expected tcp://HOST:PORT with a port from 1 to 65535, or ipc://PATH")]
    Address(String),
    /// An end that cannot be who it says.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Anything else that ZeroMQ refused.
    #[error("control channel: {0}")]
    Socket(#[from] zmq::Error),
}

fn bind_hint(why: zmq::Error) -> &'static str {
    match why {
        zmq::Error::EADDRINUSE => "; another process has it: choose another port, or end that one",
        zmq::Error::EADDRNOTAVAIL | zmq::Error::ENODEV => {
            "; expected an address of this host, or tcp://*:PORT for all of them"
        }
        zmq::Error::EINVAL | zmq::Error::EPROTONOSUPPORT => "; expected tcp://HOST:PORT or ipc://PATH",
        _ => "",
    }
}

/// What one end has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Frames taken.
    pub received: u64,
    /// Frames handed to ZeroMQ.
    pub sent: u64,
    /// Frames lost here because the queue to their peer was full; the session above sends them again.
    pub full: u64,
    /// Frames for a node that is not connected.
    pub unknown: u64,
    /// Messages that are not one part of at most [`MAX_FRAME`] bytes.
    pub malformed: u64,
    /// Messages from sockets whose identity is none, or somebody else's.
    pub refused: u64,
}

/// A node that was heard.
struct Peer {
    identity: Box<[u8]>,
    heard: Time,
}

enum End {
    /// Peers by node number.
    Hub(Vec<Option<Peer>>),
    Spoke,
}

/// One end of the control channel.
pub struct Link {
    socket: Socket,
    end: End,
    identity: Message,
    frame: Message,
    silence: Span,
    stats: LinkStats,
}

/// Longest message that ZeroMQ takes in at all; a peer that sends more is disconnected by it. Above [`MAX_FRAME`], so
/// that what is a little too long is counted.
const MAX_RECEIVED: i64 = 16 * MAX_FRAME as i64;

impl Link {
    /// The registry's end. `address` may end in `:*` for any free port; see [`Link::address`].
    pub fn bind(context: &Context, config: &LinkConfig, address: &str) -> Result<Self, LinkError> {
        let socket = socket(context, zmq::ROUTER, config)?;
        // A restarted node takes its place even before ZeroMQ has noticed that the old one is gone.
        socket.set_router_handover(true)?;
        // So that frames that cannot be sent are told, and counted, instead of vanishing.
        socket.set_router_mandatory(true)?;
        check(address, true)?;
        socket.bind(address).map_err(|why| LinkError::Bind { address: address.to_owned(), why })?;
        Ok(Self::new(socket, End::Hub(Vec::new()), config))
    }

    /// A node's end.
    pub fn connect(
        context: &Context,
        config: &LinkConfig,
        address: &str,
        identity: &Identity,
    ) -> Result<Self, LinkError> {
        let identity = Identity::new(identity.node, &identity.name)?;
        let socket = socket(context, zmq::DEALER, config)?;
        socket.set_identity(&identity.bytes())?;
        check(address, false)?;
        socket.connect(address).map_err(|why| LinkError::Connect { address: address.to_owned(), why })?;
        Ok(Self::new(socket, End::Spoke, config))
    }

    fn new(socket: Socket, end: End, config: &LinkConfig) -> Self {
        Self {
            socket,
            end,
            identity: Message::new(),
            frame: Message::new(),
            silence: config.silence,
            stats: LinkStats::default(),
        }
    }

    /// Where it is bound, or connected to.
    pub fn address(&self) -> Result<String, LinkError> {
        let text = self.socket.get_last_endpoint()?;
        Ok(text.unwrap_or_else(|bytes| String::from_utf8_lossy(&bytes).into_owned()))
    }

    /// The name of a node that was heard (registry's end only).
    pub fn name(&self, node: NodeId) -> Option<String> {
        let End::Hub(peers) = &self.end else { return None };
        let peer = peers.get(node.index())?.as_ref()?;
        Identity::parse(&peer.identity).ok().map(|identity| identity.name)
    }

    /// What was counted.
    pub fn stats(&self) -> LinkStats {
        self.stats
    }

    /// To wait for, beside others.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The next frame and who sent it; it is `present`. What is no frame is dropped and counted.
    #[inline]
    pub fn receive(&mut self, present: Time) -> Result<Option<(NodeId, &[u8])>, LinkError> {
        loop {
            let from = match &mut self.end {
                End::Spoke => Some(REGISTRY),
                End::Hub(peers) => {
                    if !take(&self.socket, &mut self.identity)? {
                        return Ok(None);
                    }
                    if !self.identity.get_more() {
                        self.stats.malformed += 1;
                        continue;
                    }
                    admit(peers, &self.identity, self.silence, present)
                }
            };
            // The parts of a message come together: there is a second one.
            if !take(&self.socket, &mut self.frame)? {
                return Ok(None);
            }
            let whole = !self.frame.get_more();
            let mut more = !whole;
            while more {
                let mut rest = Message::new();
                more = take(&self.socket, &mut rest)? && rest.get_more();
            }
            let Some(from) = from else {
                self.stats.refused += 1;
                continue;
            };
            if !whole || self.frame.len() > MAX_FRAME {
                self.stats.malformed += 1;
                continue;
            }
            self.stats.received += 1;
            return Ok(Some((from, &self.frame)));
        }
    }

    /// Sends a frame, or drops and counts it where that would have to wait. Whether ZeroMQ has it now.
    #[inline]
    pub fn send(&mut self, to: NodeId, frame: &[u8]) -> Result<bool, LinkError> {
        if let End::Hub(peers) = &self.end {
            let Some(Some(peer)) = peers.get(to.index()) else {
                self.stats.unknown += 1;
                return Ok(false);
            };
            match give(&self.socket, &peer.identity, DONTWAIT | SNDMORE) {
                Ok(()) => {}
                Err(why) => return self.lost(why),
            }
        } else if to != REGISTRY {
            self.stats.unknown += 1;
            return Ok(false);
        }
        match give(&self.socket, frame, DONTWAIT) {
            Ok(()) => {
                self.stats.sent += 1;
                Ok(true)
            }
            Err(why) => self.lost(why),
        }
    }

    fn lost(&mut self, why: zmq::Error) -> Result<bool, LinkError> {
        match why {
            zmq::Error::EAGAIN => self.stats.full += 1,
            zmq::Error::EHOSTUNREACH => self.stats.unknown += 1,
            why => return Err(why.into()),
        }
        Ok(false)
    }
}

fn socket(context: &Context, kind: SocketType, config: &LinkConfig) -> Result<Socket, LinkError> {
    let socket = context.socket(kind)?;
    socket.set_sndhwm(config.send_queue.max(1).into())?;
    socket.set_rcvhwm(config.receive_queue.max(1).into())?;
    socket.set_linger(i32::try_from(config.linger.0 / Span::ms(1).0).unwrap_or(i32::MAX))?;
    socket.set_maxmsgsize(MAX_RECEIVED)?;
    socket.set_reconnect_ivl(50)?;
    socket.set_reconnect_ivl_max(1000)?;
    // A peer whose host is gone says nothing, and TCP alone would wait for it for many minutes.
    socket.set_heartbeat_ivl(5_000)?;
    socket.set_heartbeat_timeout(30_000)?;
    Ok(socket)
}

/// ZeroMQ takes a port modulo 2^16, and finds out late or never that one is missing.
fn check(address: &str, any_port: bool) -> Result<(), LinkError> {
    let fine = match address.strip_prefix("tcp://") {
        Some(rest) => rest.rsplit_once(':').is_some_and(|(host, port)| {
            let number = port.parse::<u16>().is_ok_and(|port| port != 0);
            !host.is_empty() && (number || (any_port && port == "*"))
        }),
        None => address.split_once("://").is_some_and(|(_, rest)| !rest.is_empty()),
    };
    if fine { Ok(()) } else { Err(LinkError::Address(address.to_owned())) }
}

/// Takes the next part. Whether there was one.
#[inline]
fn take(socket: &Socket, into: &mut Message) -> Result<bool, LinkError> {
    loop {
        match socket.recv(into, DONTWAIT) {
            Ok(()) => return Ok(true),
            Err(zmq::Error::EAGAIN) => return Ok(false),
            Err(zmq::Error::EINTR) => {}
            Err(why) => return Err(why.into()),
        }
    }
}

#[inline]
fn give(socket: &Socket, part: &[u8], flags: i32) -> Result<(), zmq::Error> {
    loop {
        match socket.send(part, flags) {
            Err(zmq::Error::EINTR) => {}
            done => return done,
        }
    }
}

/// Whose identity this is; none if it is nobody's, or its number belongs to another name that was heard of late.
#[inline]
fn admit(peers: &mut Vec<Option<Peer>>, bytes: &[u8], silence: Span, present: Time) -> Option<NodeId> {
    let node = number(bytes)?;
    if let Some(Some(peer)) = peers.get_mut(node.index())
        && (*peer.identity == *bytes || present.since(peer.heard) > silence)
    {
        if *peer.identity != *bytes {
            Identity::parse(bytes).ok()?;
            peer.identity = bytes.into();
        }
        peer.heard = present;
        return Some(node);
    }
    Identity::parse(bytes).ok()?;
    debug_assert!(node.0 < MAX_NODES);
    if peers.len() <= node.index() {
        peers.resize_with(node.index() + 1, || None);
    }
    let place = &mut peers[node.index()];
    if place.is_some() {
        return None;
    }
    *place = Some(Peer { identity: bytes.into(), heard: present });
    Some(node)
}
