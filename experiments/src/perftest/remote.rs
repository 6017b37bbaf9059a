//! The two halves on two hosts: a TCP connection carries what each side must know, and says when a test is over.
//!
//! Messages are lines of JSON. The side that serves says hello; the side that connects begins each test with its parameters and its card
//! and gets the other card once that side is connected and has posted its receives. Both then drive their halves, and the connecting
//! side says when it has its figures. It closes the connection after its last test.

use super::end::{Card, End};
use super::figures::Figures;
use super::local::{LOOK, PATIENCE, Spin, Watch, stuck_at};
use super::spec::{Side, Test};
use super::{Half, TestError, Turn, half};
use engine::fabric::Fabric;
use engine::time::Time;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

/// Of the messages below.
const VERSION: u32 = 1;

/// Longest line: 16,384 queue pairs of 200 bytes.
const MAX_LINE: u64 = 4 << 20;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum Message {
    Hello {
        version: u32,
        port: String,
    },
    Begin {
        test: Box<Test>,
        card: Card,
    },
    Ready {
        card: Card,
    },
    /// The figures are taken.
    End,
    /// The target's half is done too.
    Ended,
    Failed {
        why: String,
    },
}

/// A connection to the other side.
pub struct Peer {
    stream: BufReader<TcpStream>,
}

impl Peer {
    /// Over an open connection.
    pub fn new(stream: TcpStream) -> Result<Self, TestError> {
        stream.set_nodelay(true).map_err(|error| TestError::Peer(format!("TCP_NODELAY: {error}")))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    fn tell(&mut self, message: &Message) -> Result<(), TestError> {
        let failed =
            |error: &dyn std::fmt::Display| TestError::Peer(format!("cannot tell the other side: {error}"));
        let mut line = serde_json::to_string(message).map_err(|error| failed(&error))?;
        line.push('\n');
        self.stream.get_mut().write_all(line.as_bytes()).map_err(|error| failed(&error))
    }

    /// The next message; none if the other side closed the connection between two.
    fn hear(&mut self) -> Result<Option<Message>, TestError> {
        let mut line = String::new();
        let read = self.stream.by_ref().take(MAX_LINE).read_line(&mut line);
        let n =
            read.map_err(|error| TestError::Peer(format!("the connection to the other side: {error}")))?;
        if n == 0 {
            return Ok(None);
        }
        if !line.ends_with('\n') {
            return Err(TestError::Peer(format!(
                "the other side stopped in the middle of a message of {n} bytes"
            )));
        }
        match serde_json::from_str(&line) {
            Ok(Message::Failed { why }) => Err(TestError::Peer(format!("the other side: {why}"))),
            Ok(message) => Ok(Some(message)),
            Err(error) => Err(TestError::Peer(format!(
                "the other side does not speak as kvrail perftest does: {error}"
            ))),
        }
    }

    fn expect(&mut self, what: &str) -> Result<Message, TestError> {
        self.hear()?
            .ok_or_else(|| TestError::Peer(format!("the other side closed the connection before {what}")))
    }

    /// Tells the other side why, if it can still hear it.
    fn fail<T>(&mut self, error: TestError) -> Result<T, TestError> {
        // An error that came from there is known there.
        if !matches!(error, TestError::Peer(_)) {
            let _ = self.tell(&Message::Failed { why: error.to_string() });
        }
        Err(error)
    }
}

fn unexpected<T>(message: &Message, what: &str) -> Result<T, TestError> {
    Err(TestError::Peer(format!("the other side said {message:?}, expected {what}")))
}

/// Answers one connection until the other side closes it. `begun` hears of each test.
pub fn serve(
    fabric: &mut dyn Fabric,
    stream: TcpStream,
    now: &dyn Fn() -> Time,
    begun: &mut dyn FnMut(&Test),
) -> Result<(), TestError> {
    let mut peer = Peer::new(stream)?;
    let port = fabric.ports().first().map_or_else(String::new, |port| port.name.clone());
    peer.tell(&Message::Hello { version: VERSION, port })?;
    while let Some(message) = peer.hear()? {
        let Message::Begin { test, card } = message else { return unexpected(&message, "a test") };
        begun(&test);
        if let Err(error) = answer(fabric, &mut peer, &test, &card, now) {
            return peer.fail(error);
        }
    }
    Ok(())
}

fn answer(
    fabric: &mut dyn Fabric,
    peer: &mut Peer,
    test: &Test,
    card: &Card,
    now: &dyn Fn() -> Time,
) -> Result<(), TestError> {
    let mut end = End::make(fabric, test, false)?;
    let own = end.card(fabric)?;
    end.connect(fabric, card)?;
    peer.tell(&Message::Ready { card: own })?;
    if let Some(mut half) = half(&end, test, Side::Target) {
        drive(fabric, test, half.as_mut(), now, &mut |_, _| true)?;
    }
    match peer.expect("the end of the test")? {
        Message::End => peer.tell(&Message::Ended)?,
        message => return unexpected(&message, "the end of the test"),
    }
    end.destroy(fabric)
}

/// A connection to a side that serves, for one test after the other.
pub struct Initiator {
    peer: Peer,
}

impl Initiator {
    /// Waits for the other side's hello.
    pub fn new(stream: TcpStream) -> Result<Self, TestError> {
        let mut peer = Peer::new(stream)?;
        match peer.expect("its hello")? {
            Message::Hello { version: VERSION, .. } => Ok(Self { peer }),
            Message::Hello { version, .. } => Err(TestError::Peer(format!(
                "the other side speaks version {version}, this one {VERSION}: use the same kvrail on both"
            ))),
            message => unexpected(&message, "a hello"),
        }
    }

    /// Runs one test.
    pub fn run(
        &mut self,
        fabric: &mut dyn Fabric,
        test: &Test,
        now: &dyn Fn() -> Time,
        watch: Watch<'_>,
    ) -> Result<Figures, TestError> {
        match self.measure(fabric, test, now, watch) {
            Ok(figures) => Ok(figures),
            Err(error) => self.peer.fail(error),
        }
    }

    fn measure(
        &mut self,
        fabric: &mut dyn Fabric,
        test: &Test,
        now: &dyn Fn() -> Time,
        watch: Watch<'_>,
    ) -> Result<Figures, TestError> {
        let mut end = End::make(fabric, test, false)?;
        let card = end.card(fabric)?;
        self.peer.tell(&Message::Begin { test: Box::new(*test), card })?;
        match self.peer.expect("it was ready")? {
            Message::Ready { card } => end.connect(fabric, &card)?,
            message => return unexpected(&message, "ready"),
        }
        let figures = match half(&end, test, Side::Initiator) {
            Some(mut half) => drive(fabric, test, half.as_mut(), now, watch)?,
            None => None,
        };
        self.peer.tell(&Message::End)?;
        match self.peer.expect("the end of the test")? {
            Message::Ended => {}
            message => return unexpected(&message, "the end of the test"),
        }
        end.destroy(fabric)?;
        figures.ok_or_else(|| {
            TestError::Peer("the clock stood still: no time passed during the test".to_owned())
        })
    }
}

/// Gives a half its turns, without pause.
fn drive(
    fabric: &mut dyn Fabric,
    test: &Test,
    half: &mut dyn Half,
    now: &dyn Fn() -> Time,
    watch: Watch<'_>,
) -> Result<Option<Figures>, TestError> {
    let (mut since, mut turns, mut moved, mut spin) = (now(), 0u64, true, Spin::default());
    loop {
        let turn = half.turn(fabric)?;
        spin.turn(turn == Turn::Idle);
        match turn {
            Turn::Busy => moved = true,
            Turn::Clock => {
                half.clock(now());
                moved = true;
            }
            Turn::Idle => {}
            Turn::Done => return Ok(half.figures()),
        }
        turns += 1;
        if turns.is_multiple_of(LOOK) {
            let (done, all) = half.progress();
            if !watch(done, all) {
                return Err(TestError::Interrupted);
            }
            let at = now();
            if std::mem::take(&mut moved) {
                since = at;
            }
            if at.since(since) > PATIENCE {
                return Err(stuck_at(test, Some((done, all))));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::spec::{Metric, Op, Options};
    use super::*;
    use engine::fabric::{Absent, Duo as _};
    use sim::fabric::duo::{DuoSpec, SimDuo};
    use sim::nic::NicProfile;
    use std::net::TcpListener;

    fn test() -> Test {
        let options = Options {
            op: Op::Write,
            metric: Metric::Bw,
            qps: None,
            depth: None,
            batch: None,
            inline: None,
            signal_every: None,
            iterations: None,
        };
        options.test(64, &NicProfile::ideal().limits()).unwrap()
    }

    /// What a side that serves makes of a connection on which `client` talks.
    fn against(client: impl FnOnce(TcpStream) + Send + 'static) -> Result<(), TestError> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = listener.local_addr().unwrap();
        let client = std::thread::spawn(move || client(TcpStream::connect(at).unwrap()));
        let (stream, _) = listener.accept().unwrap();
        let result = serve(&mut Absent, stream, &|| Time::ZERO, &mut |_| {});
        client.join().unwrap();
        result
    }

    fn card(test: &Test) -> Card {
        let mut duo = SimDuo::new(DuoSpec::default()).unwrap();
        let mut card = None;
        duo.call(0, &mut |fabric| card = Some(End::make(fabric, test, false).unwrap().card(fabric).unwrap()));
        card.unwrap()
    }

    #[test]
    fn closing_after_the_hello_is_no_error_and_garbage_is_one() {
        against(|stream| drop(Initiator::new(stream).unwrap())).unwrap();
        for (said, heard) in [
            (&b"GET / HTTP/1.1\r\n"[..], "does not speak"),
            (b"\"end\"", "in the middle of a message of 5 bytes"),
            (b"\"end\"\n", "expected a test"),
        ] {
            let error = against(move |stream| {
                let mut peer = Initiator::new(stream).unwrap().peer;
                peer.stream.get_mut().write_all(said).unwrap();
            });
            let error = error.unwrap_err().to_string();
            assert!(error.contains(heard), "{error}");
        }
    }

    #[test]
    fn what_fails_on_one_side_is_said_on_both() {
        let error = against(|stream| {
            let mut peer = Initiator::new(stream).unwrap().peer;
            peer.tell(&Message::Begin { test: Box::new(test()), card: card(&test()) }).unwrap();
            let heard = peer.expect("an answer").unwrap_err().to_string();
            assert!(heard.contains("the other side: --sizes 64: expected 1 to 0 bytes"), "{heard}");
        });
        let error = error.unwrap_err().to_string();
        assert!(error.contains("--sizes 64: expected 1 to 0 bytes"), "{error}");
    }

    #[test]
    fn another_version_is_refused() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut server = Peer::new(listener.accept().unwrap().0).unwrap();
        server.tell(&Message::Hello { version: VERSION + 1, port: String::new() }).unwrap();
        let error = Initiator::new(stream).err().unwrap().to_string();
        assert!(error.contains("version 2"), "{error}");
    }
}
