//! `faults:` what goes wrong, where and when. `docs/faults.md` has an example of each.

use std::fmt;
use std::str::FromStr;

use models::Picos;
use serde::de::{Deserializer, Error as _};
use serde::ser::Serializer;
use serde::{Deserialize, Serialize};

use super::field;

mod check;
mod when;

pub(crate) use check::{Site, sites};
pub use when::{RoomIs, WhenSpec};

/// One entry: when, how often, and one of the kinds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct FaultSpec {
    /// When it strikes (first), from the start of the run.
    pub at: Picos,
    /// It strikes again each time that this has passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every: Option<Picos>,
    /// So often in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
    /// No more strikes from here on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Picos>,
    /// Where or when it strikes is drawn, from the seed of the run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub random: Option<RandomSpec>,
    /// It waits for a room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<WhenSpec>,
    /// A queue pair goes to ERR.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue_pair_error: Option<QueuePairError>,
    /// A port's link goes down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_down: Option<LinkDown>,
    /// A port's link goes down again and again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flap: Option<Flap>,
    /// A port's link runs at a part of its rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub degrade: Option<Degrade>,
    /// Packets on a port's link get lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss: Option<Loss>,
    /// NICs reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nic_reset: Option<NicReset>,
    /// A link is taken out of use in good order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_remove: Option<LinkRemove>,
    /// The provider refuses a request in the middle of a chain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_failure: Option<PostFailure>,
    /// Completions come late.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub completion_delay: Option<CompletionDelay>,
    /// Writes are executed, and their acknowledgements never come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unacknowledged: Option<Unacknowledged>,
    /// Receives cannot be used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receives_dry: Option<ReceivesDry>,
    /// A node's process dies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crash: Option<Crash>,
    /// A node's process stops, and goes on later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<Pause>,
    /// An instance leaves in good order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leave: Option<Leave>,
    /// Control messages are disturbed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<Control>,
    /// A node's clock is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock: Option<ClockFault>,
    /// A node is slow.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow: Option<Slow>,
}

/// What is drawn. Either `share` or `rate`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RandomSpec {
    /// This part of all places that the kind and its `node` allow is struck, at least one. What repeats starts at an instant of its own in each.
    #[serde(deserialize_with = "share", skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// Strikes per second (Poisson), from `at` until `until`, each in one place.
    #[serde(deserialize_with = "rate", skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
}

fn share<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    field::probability(deserializer).map(Some)
}

fn rate<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
    field::positive(deserializer).map(Some)
}

/// A node by its name, or several by their role.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeName {
    /// `registry`.
    Registry,
    /// `router`.
    Router,
    /// `prefill-N`, from 0.
    Prefill(u32),
    /// `decode-N`, from 0.
    Decode(u32),
    /// `prefill`: each prefill instance.
    EachPrefill,
    /// `decode`: each decode instance.
    EachDecode,
    /// `all`: each instance.
    #[default]
    All,
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry => f.write_str("registry"),
            Self::Router => f.write_str("router"),
            Self::Prefill(n) => write!(f, "prefill-{n}"),
            Self::Decode(n) => write!(f, "decode-{n}"),
            Self::EachPrefill => f.write_str("prefill"),
            Self::EachDecode => f.write_str("decode"),
            Self::All => f.write_str("all"),
        }
    }
}

impl FromStr for NodeName {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let number = |rest: Option<&str>| rest.and_then(|n| n.parse().ok());
        match text {
            "registry" => Ok(Self::Registry),
            "router" => Ok(Self::Router),
            "prefill" => Ok(Self::EachPrefill),
            "decode" => Ok(Self::EachDecode),
            "all" => Ok(Self::All),
            _ => number(text.strip_prefix("prefill-"))
                .map(Self::Prefill)
                .or_else(|| number(text.strip_prefix("decode-")).map(Self::Decode))
                .ok_or_else(|| {
                    let right =
                        "expected registry, router, prefill-0, decode-0 and so on, or prefill, decode, all";
                    format!("unknown node `{text}`, {right}")
                }),
        }
    }
}

impl Serialize for NodeName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for NodeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

/// Defines a kind that strikes ports: of a node or host, one or (where the kind says so) all.
macro_rules! at_port {
    ($(#[$doc:meta])* $name:ident { $($(#[$field:meta])* $key:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            /// Whose.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub node: Option<NodeName>,
            /// Or: host, from 0: that of each prefill instance first, then that of each decode instance.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub host: Option<u32>,
            /// Port, from 0; 0 if it is not said and not drawn.
            #[serde(default, skip_serializing_if = "Option::is_none")]
            pub port: Option<u32>,
            $($(#[$field])* pub $key: $type,)*
        }

        impl $name {
            /// Where it strikes.
            #[must_use]
            pub fn place(&self) -> PortPlace {
                PortPlace { node: self.node, host: self.host, port: self.port }
            }
        }
    };
}

/// Ports, as a fault names them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortPlace {
    /// Of these nodes.
    pub node: Option<NodeName>,
    /// Of this host.
    pub host: Option<u32>,
    /// This one.
    pub port: Option<u32>,
}

/// A queue pair of an instance goes to ERR.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QueuePairError {
    /// Whose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// Or: prefill instance, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefill: Option<u32>,
    /// Which of its queue pairs, from 0 and modulo how many there are then.
    pub index: u32,
}

at_port! {
    /// A port's link goes down and comes back.
    LinkDown {
        /// How long.
        #[serde(rename = "for")]
        duration: Picos,
    }
}

at_port! {
    /// A port's link goes down and comes back, again and again.
    Flap {
        /// From one time that it goes down to the next.
        every: Picos,
        /// How long it is down each time.
        #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
        duration: Option<Picos>,
        /// Or: the part of the time in which it is down, 0 to 1.
        #[serde(default, deserialize_with = "share", skip_serializing_if = "Option::is_none")]
        duty: Option<f64>,
        /// So often.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        times: Option<u32>,
        /// Or: not again from here on, from the start of the run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<Picos>,
    }
}

at_port! {
    /// A port's link runs at a part of its rate, both ways.
    Degrade {
        /// Of its rate, 0 to 1.
        #[serde(deserialize_with = "field::probability")]
        to: f64,
        /// How long.
        #[serde(rename = "for")]
        duration: Picos,
    }
}

at_port! {
    /// Each packet that crosses a port's link is lost with a probability, both ways.
    Loss {
        /// Of a packet.
        #[serde(deserialize_with = "field::probability")]
        probability: f64,
        /// How long.
        #[serde(rename = "for")]
        duration: Picos,
    }
}

at_port! {
    /// NICs reset: all queue pairs fail, and until it is over there are no new ones. All ports of the host unless one is named.
    NicReset {
        /// How long until it is back.
        #[serde(rename = "for")]
        duration: Picos,
    }
}

at_port! {
    /// A link is removed in good order: its host hears that it is down, and packets pass for as long as `grace`.
    LinkRemove {
        /// How long what is on the way has.
        #[serde(default = "second")]
        grace: Picos,
        /// When it is there again, from `at`; never, if it is not said.
        #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
        duration: Option<Picos>,
    }
}

fn second() -> Picos {
    Picos(1_000_000_000_000)
}

fn one() -> u32 {
    1
}

fn no_change() -> f64 {
    1.0
}

/// A request in a chain is refused, as when the provider has no memory (ENOMEM). Those before it are posted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostFailure {
    /// Whose chains.
    pub node: NodeName,
    /// Number of the request in its chain, from 0. Shorter chains are not struck.
    #[serde(default)]
    pub request: u32,
    /// So many chains.
    #[serde(default = "one", deserialize_with = "field::count")]
    pub times: u32,
}

/// Completions come later.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CompletionDelay {
    /// Whose.
    pub node: NodeName,
    /// So much later.
    pub by: Picos,
    /// How long this goes on.
    #[serde(rename = "for")]
    pub duration: Picos,
}

/// WRITEs or SENDs are executed and never acknowledged: the target's memory has changed, the requester sees RETRY_EXC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Unacknowledged {
    /// The requester. A node that posts no WRITEs, as in pull, is not struck.
    pub node: NodeName,
    /// So many rows of requests, each up to a signal or an immediate.
    #[serde(default = "one", deserialize_with = "field::count")]
    pub times: u32,
}

/// No receive can be used: what needs one gets an RNR NAK.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceivesDry {
    /// Whose.
    pub node: NodeName,
    /// How long.
    #[serde(rename = "for")]
    pub duration: Picos,
}

/// A node's process dies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Crash {
    /// Which: an instance, or the registry.
    pub node: NodeName,
    /// When it is started anew, knowing nothing, from `at`; never, if it is not said.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Picos>,
}

/// A node's process stops; its NIC goes on. Longer than its lease, and it comes back as a zombie.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pause {
    /// Which.
    pub node: NodeName,
    /// How long.
    #[serde(rename = "for")]
    pub duration: Picos,
}

/// An instance leaves in good order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leave {
    /// Which.
    pub node: NodeName,
    /// When it is started anew, from `at`; never, if it is not said.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Picos>,
}

/// Control messages are disturbed: frames between a node and the registry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// Sent by these nodes; by all, if it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<NodeName>,
    /// Sent to these nodes; to all, if it is not said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<NodeName>,
    /// Or: sent by or to these nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeName>,
    /// Probability that a frame is lost.
    #[serde(default, deserialize_with = "field::probability", skip_serializing_if = "is_zero")]
    pub loss: f64,
    /// That it comes twice, the second time up to `by` later.
    #[serde(default, deserialize_with = "field::probability", skip_serializing_if = "is_zero")]
    pub duplicate: f64,
    /// That it is held back for up to `by`, so that later ones overtake it.
    #[serde(default, deserialize_with = "field::probability", skip_serializing_if = "is_zero")]
    pub reorder: f64,
    /// For `duplicate` and `reorder`.
    #[serde(default = "tenth_of_a_ms")]
    pub by: Picos,
    /// Each frame comes so much later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Picos>,
    /// That only a part of it comes.
    #[serde(default, deserialize_with = "field::probability", skip_serializing_if = "is_zero")]
    pub truncate: f64,
    /// That some of its bytes come changed.
    #[serde(default, deserialize_with = "field::probability", skip_serializing_if = "is_zero")]
    pub garble: f64,
    /// How long.
    #[serde(rename = "for")]
    pub duration: Picos,
}

fn tenth_of_a_ms() -> Picos {
    Picos(100_000_000)
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// A node's clock leaps ahead, and runs faster or slower.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClockFault {
    /// Whose.
    pub node: NodeName,
    /// The leap.
    #[serde(default)]
    pub ahead: Picos,
    /// Faster by so many parts of a million; negative for slower.
    #[serde(default, deserialize_with = "drift")]
    pub drift_ppm: i32,
    /// How long it runs so; for ever, if it is not said. A leap is not taken back.
    #[serde(rename = "for", default, skip_serializing_if = "Option::is_none")]
    pub duration: Option<Picos>,
}

/// Two clocks that drift apart by twice this are still within what leases allow for.
fn drift<'de, D: Deserializer<'de>>(deserializer: D) -> Result<i32, D::Error> {
    let value = i64::deserialize(deserializer)?;
    match i32::try_from(value) {
        Ok(value) if value.abs() <= 30_000 => Ok(value),
        _ => Err(D::Error::custom(format_args!(
            "invalid value {value}, expected -30000 to 30000 parts per million, for which leases are safe"
        ))),
    }
}

/// A node is slow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slow {
    /// Which.
    pub node: NodeName,
    /// Its calls take so many times their CPU time.
    #[serde(default = "no_change", deserialize_with = "slower")]
    pub cpu: f64,
    /// Each of them takes this much more.
    #[serde(default)]
    pub call: Picos,
    /// Its model computes in so many times the time.
    #[serde(default = "no_change", deserialize_with = "slower")]
    pub compute: f64,
    /// How long.
    #[serde(rename = "for")]
    pub duration: Picos,
}

fn slower<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
    let value = f64::deserialize(deserializer)?;
    if (1.0..=1000.0).contains(&value) {
        return Ok(value);
    }
    Err(D::Error::custom(format_args!("invalid value {value}, expected a factor from 1 to 1000")))
}

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum What {
    /// `queue-pair-error`.
    QueuePairError(QueuePairError),
    /// `link-down`.
    LinkDown(LinkDown),
    /// `flap`.
    Flap(Flap),
    /// `degrade`.
    Degrade(Degrade),
    /// `loss`.
    Loss(Loss),
    /// `nic-reset`.
    NicReset(NicReset),
    /// `link-remove`.
    LinkRemove(LinkRemove),
    /// `post-failure`.
    PostFailure(PostFailure),
    /// `completion-delay`.
    CompletionDelay(CompletionDelay),
    /// `unacknowledged`.
    Unacknowledged(Unacknowledged),
    /// `receives-dry`.
    ReceivesDry(ReceivesDry),
    /// `crash`.
    Crash(Crash),
    /// `pause`.
    Pause(Pause),
    /// `leave`.
    Leave(Leave),
    /// `control`.
    Control(Control),
    /// `clock`.
    Clock(ClockFault),
    /// `slow`.
    Slow(Slow),
}

impl What {
    /// How long it lasts each time; none for what strikes at an instant, or for ever.
    #[must_use]
    pub fn lasts(&self) -> Option<Picos> {
        match self {
            What::LinkDown(f) => Some(f.duration),
            What::Flap(f) => Some(f.duration.unwrap_or(f.every)),
            What::Degrade(f) => Some(f.duration),
            What::Loss(f) => Some(f.duration),
            What::NicReset(f) => Some(f.duration),
            What::LinkRemove(f) => Some(f.duration.unwrap_or(f.grace)),
            What::CompletionDelay(f) => Some(f.duration),
            What::ReceivesDry(f) => Some(f.duration),
            What::Crash(f) => f.duration,
            What::Pause(f) => Some(f.duration),
            What::Leave(f) => f.duration,
            What::Control(f) => Some(f.duration),
            What::Clock(f) => f.duration,
            What::Slow(f) => Some(f.duration),
            What::QueuePairError(_) | What::PostFailure(_) | What::Unacknowledged(_) => None,
        }
    }
}

/// Names of the kinds, as keys of an entry.
pub const KINDS: [&str; 17] = [
    "queue-pair-error",
    "link-down",
    "flap",
    "degrade",
    "loss",
    "nic-reset",
    "link-remove",
    "post-failure",
    "completion-delay",
    "unacknowledged",
    "receives-dry",
    "crash",
    "pause",
    "leave",
    "control",
    "clock",
    "slow",
];

impl FaultSpec {
    /// The kinds that it names, by key; an entry that is right names one.
    #[must_use]
    pub fn kinds(&self) -> Vec<(&'static str, What)> {
        let all = [
            self.queue_pair_error.map(What::QueuePairError),
            self.link_down.map(What::LinkDown),
            self.flap.map(What::Flap),
            self.degrade.map(What::Degrade),
            self.loss.map(What::Loss),
            self.nic_reset.map(What::NicReset),
            self.link_remove.map(What::LinkRemove),
            self.post_failure.map(What::PostFailure),
            self.completion_delay.map(What::CompletionDelay),
            self.unacknowledged.map(What::Unacknowledged),
            self.receives_dry.map(What::ReceivesDry),
            self.crash.map(What::Crash),
            self.pause.map(What::Pause),
            self.leave.map(What::Leave),
            self.control.map(What::Control),
            self.clock.map(What::Clock),
            self.slow.map(What::Slow),
        ];
        KINDS.into_iter().zip(all).filter_map(|(name, what)| Some((name, what?))).collect()
    }

    /// When nothing of it happens any more, from the start of the run. What lasts for ever is over when it has begun, and what waits for a
    /// room is taken to find one at once.
    #[must_use]
    pub fn end(&self) -> Picos {
        let flap = self.flap.unwrap_or_default();
        let every = self.every.unwrap_or(flap.every).0;
        let times = u64::from(self.times.or(flap.times).unwrap_or(1));
        // Drawn phases are shorter than one round.
        let rounds = every.saturating_mul(times - u64::from(self.random.is_none() && times > 0));
        let last = self.until.or(flap.until).map_or(self.at.0.saturating_add(rounds), |until| until.0);
        let lasts = self.kinds().into_iter().filter_map(|(_, what)| what.lasts());
        Picos(last.saturating_add(lasts.map(|span| span.0).max().unwrap_or(0)))
    }

    /// An entry for one fault at one instant.
    #[must_use]
    pub fn of(at: Picos, what: What) -> Self {
        let mut spec = Self { at, ..Self::default() };
        match what {
            What::QueuePairError(fault) => spec.queue_pair_error = Some(fault),
            What::LinkDown(fault) => spec.link_down = Some(fault),
            What::Flap(fault) => spec.flap = Some(fault),
            What::Degrade(fault) => spec.degrade = Some(fault),
            What::Loss(fault) => spec.loss = Some(fault),
            What::NicReset(fault) => spec.nic_reset = Some(fault),
            What::LinkRemove(fault) => spec.link_remove = Some(fault),
            What::PostFailure(fault) => spec.post_failure = Some(fault),
            What::CompletionDelay(fault) => spec.completion_delay = Some(fault),
            What::Unacknowledged(fault) => spec.unacknowledged = Some(fault),
            What::ReceivesDry(fault) => spec.receives_dry = Some(fault),
            What::Crash(fault) => spec.crash = Some(fault),
            What::Pause(fault) => spec.pause = Some(fault),
            What::Leave(fault) => spec.leave = Some(fault),
            What::Control(fault) => spec.control = Some(fault),
            What::Clock(fault) => spec.clock = Some(fault),
            What::Slow(fault) => spec.slow = Some(fault),
        }
        spec
    }
}
