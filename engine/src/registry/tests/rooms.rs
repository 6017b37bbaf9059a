use super::net::{Faults, Net, Toy, key};
use crate::node::{Input, Node, Outbox, Reason};
use crate::registry::*;
use crate::time::Span;
use proptest::prelude::*;

const ROLES: [Role; 5] = [Role::Router, Role::Prefill, Role::Prefill, Role::Decode, Role::Decode];

/// One thing that happens.
#[derive(Clone, Debug)]
enum Act {
    Create(usize, usize),
    Abort(prop::sample::Index),
    /// A node stands still for so many milliseconds.
    Pause(usize, u64),
    /// The registry is away for so many milliseconds and comes back empty.
    Restart(u64),
}

fn create() -> impl Strategy<Value = Act> {
    (1usize..3, 3usize..5).prop_map(|(prefill, decode)| Act::Create(prefill, decode))
}

fn any_act() -> impl Strategy<Value = Act> {
    prop_oneof![
        20 => create(),
        2 => any::<prop::sample::Index>().prop_map(Act::Abort),
        1 => (0usize..5, 1u64..12_000).prop_map(|(node, ms)| Act::Pause(node, ms)),
        1 => (0u64..9000).prop_map(Act::Restart),
    ]
}

struct World {
    net: Net,
    epoch: u32,
    rooms: u64,
    expired: u64,
}

impl World {
    fn new(faults: Faults, seed: u64) -> Self {
        let mut net = Net::new(&ROLES, faults, seed);
        net.run(Span::s(5));
        Self { net, epoch: 1, rooms: 0, expired: 0 }
    }
    fn act(&mut self, act: &Act) {
        let net = &mut self.net;
        match act {
            Act::Create(prefill, decode) => {
                let (prefill, decode) = (net.id(*prefill), net.id(*decode));
                if net.toys[0].client.is_ended() {
                    return;
                }
                self.rooms += 1;
                net.toys[0].create(key(self.rooms), prefill, decode);
            }
            Act::Abort(at) if self.rooms > 0 => {
                let key = key(at.index(self.rooms as usize) as u64 + 1);
                if net.toys[0].rooms[&key].outcome.is_none() {
                    net.toys[0].client.send(&Message::Cancel { key, reason: Reason::Deadline });
                }
            }
            Act::Abort(_) => {}
            Act::Pause(node, ms) => {
                net.toys[*node].paused = true;
                net.run(Span::ms(*ms));
                net.toys[*node].paused = false;
            }
            Act::Restart(ms) => {
                self.expired += net.registry().stats().expired;
                net.registry = None;
                net.run(Span::ms(*ms));
                self.epoch += 1;
                net.restart(self.epoch);
            }
        }
    }
    fn expired(&self) -> u64 {
        self.expired + self.net.registry().stats().expired
    }
    fn check_over(&mut self) {
        let net = &mut self.net;
        for toy in &net.toys {
            assert_eq!(toy.live(), 0, "{:?} {} still has {:?}", toy.role, toy.id(), toy.rooms);
        }
        assert_eq!(net.registry().held().rooms, 0);
        // Nobody but decode can say that a room went well.
        for (key, dones) in &net.toys[0].dones {
            let finished =
                |toy: &Toy| toy.rooms.get(key).is_some_and(|room| room.outcome == Some(Outcome::Finished));
            assert!(
                dones[0] != Outcome::Finished || net.toys[3..].iter().any(finished),
                "{key:?}: {dones:?}"
            );
        }
        for toy in &mut net.toys {
            toy.client.leave(net.now);
        }
        net.run(Span::s(120));
        assert!(net.toys.iter().all(|toy| toy.client.is_ended()));
        assert!(net.toys.iter().all(|toy| toy.client.deadline() == crate::time::Time::NEVER));
        net.registry.as_mut().unwrap().step(net.now, Input::Wake, &mut Outbox::default());
        assert_eq!(net.registry().footprint(), 0, "something stays in the registry");
        assert_eq!(net.registry().deadline(), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever happens to frames, nodes and the registry, every room ends at every participant, and nothing stays.
    #[test]
    fn every_room_ends(
        faults in Faults::any(),
        seed: u64,
        rejoins: bool,
        acts in prop::collection::vec((any_act(), 0u64..400), 1..60),
    ) {
        let mut world = World::new(faults, seed);
        world.net.toys.iter_mut().for_each(|toy| toy.rejoins = rejoins);
        for (act, ms) in &acts {
            world.act(act);
            world.net.run(Span::ms(*ms));
        }
        world.net.run(Span::s(60));
        // A prefill whose router and registry died at once has only its own deadline.
        for at in 1..3 {
            let toy = &mut world.net.toys[at];
            let open: Vec<_> = toy.rooms.iter().filter(|(_, room)| room.report.is_none()).map(|(key, _)| *key).collect();
            for key in open {
                toy.rooms.get_mut(&key).unwrap().report = Some(Report { delivered: false, clean: true });
                let report = Report { delivered: false, clean: true };
                toy.client.send(&Message::Report { key, report });
            }
        }
        world.net.run(Span::s(20));
        world.check_over();
    }

    /// While every lease holds, restarts of the registry cost no room.
    #[test]
    fn a_restart_loses_no_room(
        lost in 0u32..60,
        doubled in 0u32..300,
        us in 1u64..100_000,
        seed: u64,
        acts in prop::collection::vec((prop_oneof![20 => create(), 1 => (0u64..1000).prop_map(Act::Restart)], 0u64..200), 1..60),
    ) {
        let faults = Faults { lost, doubled, damaged: 10, delay: Span::us(us) };
        let mut world = World::new(faults, seed);
        for (act, ms) in &acts {
            world.act(act);
            world.net.run(Span::ms(*ms));
        }
        world.net.run(Span::s(30));
        if world.expired() == 0 {
            let router = &world.net.toys[0];
            for (key, room) in &router.rooms {
                prop_assert_eq!(room.outcome, Some(Outcome::Finished), "{:?}", key);
            }
            // Not even the pages of one room have to be fenced.
            for decode in &world.net.toys[3..] {
                prop_assert!(decode.rooms.values().all(|room| room.report.is_some()), "{:?}", decode.rooms);
            }
        }
        world.check_over();
    }
}
