//! The ear on the control channel: every message that leaves a node, decoded with the engine's own codec.

use crate::world::{Censor, Verdict, World};
use engine::id::{NodeId, RequestId};
use engine::registry::{Frame, Message, REGISTRY, RoomKey, decode};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// A message as it leaves a node.
#[derive(Clone, Copy, Debug)]
pub struct Said<'a> {
    /// Who says it.
    pub from: NodeId,
    /// To whom.
    pub to: NodeId,
    /// What.
    pub message: &'a Message,
}

impl Said<'_> {
    /// Whether a client says it to the registry.
    #[must_use]
    pub fn to_registry(&self) -> bool {
        self.to == REGISTRY
    }
}

/// Names a hold or a drop, to end it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TapId(u32);

type Pick = Box<dyn Fn(&Said<'_>) -> bool>;

#[derive(Default)]
struct Ear {
    next: u32,
    picks: BTreeMap<TapId, (Verdict, Pick)>,
    rooms: BTreeMap<RequestId, RoomKey>,
}

impl Ear {
    fn verdict(&self, from: NodeId, to: NodeId, messages: &[Message]) -> Verdict {
        let mut verdict = Verdict::Pass;
        for message in messages {
            let said = Said { from, to, message };
            for (what, pick) in self.picks.values() {
                if pick(&said) {
                    if *what == Verdict::Drop {
                        return Verdict::Drop;
                    }
                    verdict = Verdict::Hold;
                }
            }
        }
        verdict
    }
}

/// Messages that lie whole in a frame.
fn messages(bytes: &[u8]) -> Vec<Message> {
    let Ok(frame) = Frame::parse(bytes) else { return Vec::new() };
    let (mut all, mut whole) = (Vec::new(), Vec::new());
    for (more, segment) in frame.segments() {
        whole.extend_from_slice(segment);
        if !more {
            all.extend(decode(&whole));
            whole.clear();
        }
    }
    all
}

/// Listens to a world.
#[derive(Default)]
pub(super) struct Tap(Rc<RefCell<Ear>>);

impl Tap {
    /// What a world calls for each frame.
    pub(super) fn censor(&self) -> Censor {
        let ear = self.0.clone();
        Box::new(move |from, to, bytes| {
            let messages = messages(bytes);
            let mut ear = ear.borrow_mut();
            for message in &messages {
                if let Message::Create { key, request, .. } = message {
                    ear.rooms.insert(request.id, *key);
                }
            }
            ear.verdict(from, to, &messages)
        })
    }

    /// From now on frames with such a message are held or dropped.
    pub(super) fn add(&self, what: Verdict, pick: impl Fn(&Said<'_>) -> bool + 'static) -> TapId {
        let mut ear = self.0.borrow_mut();
        let id = TapId(ear.next);
        ear.next += 1;
        ear.picks.insert(id, (what, Box::new(pick)));
        id
    }

    /// Ends a hold or drop; frames that nothing else holds go their way.
    pub(super) fn remove(&self, id: TapId, world: &mut World) {
        self.0.borrow_mut().picks.remove(&id);
        let ear = self.0.borrow();
        world.let_go_where(|from, to, bytes| ear.verdict(from, to, &messages(bytes)) == Verdict::Pass);
    }

    /// The room of a request that the router made last.
    pub(super) fn room(&self, request: RequestId) -> Option<RoomKey> {
        self.0.borrow().rooms.get(&request).copied()
    }
}
