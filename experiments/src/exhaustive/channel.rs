//! The registry's end of a node's session: messages in frames, as nodes take and leave them.

use engine::id::NodeId;
use engine::node::Outbox;
use engine::registry::{Frame, FrameFlags, Header, Message, Session, SessionConfig, decode, encode};
use engine::time::{Span, Time};

/// One session. Its clock stands still and no frame is lost, so that nothing is ever sent again.
pub(super) struct Channel {
    session: Session,
    header: Header,
    out: Outbox,
}

impl Default for Channel {
    fn default() -> Self {
        let config = SessionConfig { ack_delay: Span(0), ..SessionConfig::default() };
        // Epochs begin at 1.
        let header = Header { epoch: 1, ..Header::default() };
        Self { session: Session::new(config), header, out: Outbox::default() }
    }
}

impl Channel {
    /// A frame with one message for the node.
    pub(super) fn frame(&mut self, message: &Message) -> Vec<u8> {
        self.session.queue(|bytes| encode(message, bytes));
        self.send(FrameFlags::default())
    }

    /// A frame that says that there is no such session any more.
    pub(super) fn reset(&mut self) -> Vec<u8> {
        self.send(FrameFlags::RESET)
    }

    fn send(&mut self, flags: FrameFlags) -> Vec<u8> {
        self.out.clear();
        self.session.flush(Time::ZERO, NodeId(0), Header { flags, ..self.header }, true, &mut self.out);
        self.out.frames().next().map(|(_, bytes)| bytes.to_vec()).unwrap_or_default()
    }

    /// What the node says in its frames. After the session was reset it begins another one, which nobody answers.
    pub(super) fn receive(&mut self, out: &Outbox) -> Vec<Message> {
        let mut messages = Vec::new();
        for frame in out.frames().filter_map(|(_, bytes)| Frame::parse(bytes).ok()) {
            if self.header.nonce == 0 {
                // The heartbeat that the lease begins with. Later ones are not heard: it runs out when that step is taken.
                (self.header.nonce, self.header.beat) = (frame.header.nonce, frame.header.beat);
            }
            if frame.header.nonce != self.header.nonce {
                continue;
            }
            self.session.acknowledge(&frame.header);
            let first = self.session.first_of(&frame);
            for (seq, (more, segment)) in (first..).zip(frame.segments()) {
                let message = self.session.admit(Time::ZERO, seq, more, segment);
                messages.extend(message.and_then(|bytes| decode(&bytes).ok()));
            }
        }
        messages
    }
}
