//! Messages as bytes: one byte for the kind, then the fields in order, integers as LEB128 variable-length numbers.
//!
//! Nothing is described by the bytes themselves. Every count is bounded, and compared with the bytes that are left, before
//! anything is allocated for it.

mod facts;

use super::frame::{FrameError, MAX_MESSAGE};
use super::message::*;
use super::reader::Reader;
use crate::fabric::Endpoint;
use crate::id::{InstanceId, NodeId, Page, Rank, RequestId};
use crate::node::Request;
use crate::time::Span;

use facts::{facts, put_facts};

/// Most ranks of an instance.
const MAX_RANKS: u64 = 4096;
/// Most pools of a rank, and buffers' pitches.
const MAX_POOLS: u64 = 4096;
/// Most ports of a host.
const MAX_PORTS: u64 = 256;
/// Most prefix blocks of a request; bounds what a short run code can blow up to.
const MAX_BLOCKS: u64 = 1 << 16;
/// Most runs in a page list.
const MAX_RUNS: u64 = 1 << 20;
/// Most pieces in one message: chunks times groups of layers.
const MAX_PIECES: u64 = 1 << 16;
/// Most queue pairs of a link.
const MAX_ENDPOINTS: u64 = 1 << 16;
/// Most live rooms in an offer, and seen parts of one.
const MAX_LIVE: u64 = 1 << 20;
/// Longest text in bytes.
const MAX_TEXT: usize = 4096;
/// How far back an endpoint may refer for its address.
const MAX_BACK: usize = 64;

fn put(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}

/// Room ids are drawn from all 64 bits: as they are, they are shorter than digit by digit.
fn put_key(out: &mut Vec<u8>, key: &RoomKey) {
    out.extend_from_slice(&key.room.0.to_le_bytes());
    put(out, key.attempt.into());
}

/// Block ids of one prompt are mostly consecutive in the Mooncake traces: (distance from the run before, length) pairs.
fn put_request(out: &mut Vec<u8>, request: &Request) {
    put(out, request.id.0);
    put(out, request.prompt.into());
    put(out, request.output.into());
    put(out, request.tenant.into());
    put(out, request.blocks.len() as u64);
    let mut end = 0u64;
    let mut left = &request.blocks[..];
    while let Some(&first) = left.first() {
        let follows = |(i, block): &(usize, &u64)| first.checked_add(*i as u64) == Some(**block);
        let run = left.iter().enumerate().take_while(follows).count();
        put(out, zigzag(first.wrapping_sub(end) as i64));
        put(out, run as u64);
        end = first.wrapping_add(run as u64);
        left = &left[run..];
    }
}

fn request(from: &mut Reader<'_>) -> Result<Request, FrameError> {
    let mut request = Request {
        id: RequestId(from.u64("request")?),
        prompt: from.u32("prompt")?,
        output: from.u32("output")?,
        tenant: from.u32("tenant")?,
        blocks: Vec::new(),
    };
    let total = from.count("blocks", MAX_BLOCKS, 0)?;
    if total > 0 && from.left.len() < 2 {
        return Err(FrameError::Truncated { field: "blocks", need: 2, left: from.left.len() });
    }
    request.blocks.reserve_exact(total);
    let mut end = 0u64;
    while request.blocks.len() < total {
        let first = end.wrapping_add(unzigzag(from.u64("block")?) as u64);
        let run = from.u64("run of blocks")?;
        if run == 0 || run > (total - request.blocks.len()) as u64 || first.checked_add(run - 1).is_none() {
            return Err(FrameError::Value {
                field: "run of blocks",
                value: run,
                right: "1 to the blocks that are missing",
            });
        }
        request.blocks.extend((0..run).map(|i| first + i));
        end = first.wrapping_add(run);
    }
    Ok(request)
}

fn put_pages(out: &mut Vec<u8>, list: &PageList) {
    put_key(out, &list.key);
    put(out, list.fence_epoch.into());
    put(out, list.slot.into());
    out.push(list.generation);
    put(out, list.group.into());
    put(out, list.credits.into());
    put(out, list.tokens.into());
    put(out, list.offset.into());
    put(out, list.total.into());
    put_runs(out, &list.pages);
}

fn put_runs(out: &mut Vec<u8>, runs: &[PageRun]) {
    put(out, runs.len() as u64);
    let mut end = 0;
    for run in runs {
        put(out, zigzag(i64::from(run.first.0) - end));
        put(out, run.count.into());
        end = i64::from(run.first.0) + i64::from(run.count);
    }
}

/// Runs, and how many pages they have.
fn runs(from: &mut Reader<'_>) -> Result<(Vec<PageRun>, u64), FrameError> {
    let count = from.count("page runs", MAX_RUNS, 2)?;
    let mut runs = Vec::with_capacity(count);
    let (mut end, mut listed) = (0i64, 0);
    for _ in 0..count {
        let step = unzigzag(from.u64("page")?);
        let count = from.u32("run of pages")?;
        let first = end.checked_add(step).and_then(|first| u32::try_from(first).ok());
        let Some(first) = first.filter(|first| count > 0 && first.checked_add(count - 1).is_some()) else {
            return Err(FrameError::Value {
                field: "run of pages",
                value: count.into(),
                right: "at least one page, numbers of 32 bits",
            });
        };
        listed += u64::from(count);
        runs.push(PageRun { first: Page(first), count });
        end = i64::from(first) + i64::from(count);
    }
    Ok((runs, listed))
}

fn pages(from: &mut Reader<'_>) -> Result<PageList, FrameError> {
    let mut list = PageList {
        key: from.key()?,
        fence_epoch: from.u32("fence epoch")?,
        slot: from.u16("slot")?,
        generation: from.byte("generation")?,
        group: from.u16("group")?,
        credits: from.u16("credits")?,
        tokens: from.u32("tokens")?,
        offset: from.u32("offset")?,
        total: from.u32("total")?,
        pages: Vec::new(),
        stage: Vec::new(),
    };
    let (pages, count) = runs(from)?;
    list.pages = pages;
    let listed = u64::from(list.offset) + count;
    if listed > list.total.into() {
        return Err(FrameError::Value { field: "pages listed", value: listed, right: "at most the total" });
    }
    Ok(list)
}

fn put_pieces(out: &mut Vec<u8>, pieces: &[Piece]) {
    put(out, pieces.len() as u64);
    for range in pieces.iter().flat_map(|piece| [&piece.tokens, &piece.layers]) {
        put(out, range.start.into());
        put(out, range.len() as u64);
    }
}

fn pieces(from: &mut Reader<'_>) -> Result<Vec<Piece>, FrameError> {
    let range = |from: &mut Reader<'_>| {
        let (start, len) = (from.u32("start of a piece")?, from.u32("length of a piece")?);
        let end = start.checked_add(len).filter(|end| *end > start).ok_or(FrameError::Value {
            field: "length of a piece",
            value: len.into(),
            right: "at least 1, numbers of 32 bits",
        })?;
        Ok(start..end)
    };
    let count = from.count("pieces", MAX_PIECES, 4)?;
    (0..count).map(|_| Ok(Piece { tokens: range(from)?, layers: range(from)? })).collect()
}

/// Whether it is the rest, and the checksums that come with it.
fn rest(from: &mut Reader<'_>) -> Result<Option<Vec<u64>>, FrameError> {
    match from.byte("whether it is the rest")? {
        0 => Ok(None),
        1 => Ok(Some(Vec::new())),
        2 => {
            let count = from.count("checksums", MAX_PIECES, 1)?;
            if count == 0 {
                return Err(FrameError::Value { field: "checksums", value: 0, right: "at least 1" });
            }
            (0..count).map(|_| from.u64("checksum")).collect::<Result<_, _>>().map(Some)
        }
        value => {
            Err(FrameError::Value { field: "whether it is the rest", value: value.into(), right: "0 to 2" })
        }
    }
}

/// An endpoint's address is mostly that of the one a few places before: the same port of the same host.
fn put_endpoints(out: &mut Vec<u8>, ends: &[Endpoint]) {
    put(out, ends.len() as u64);
    for (i, end) in ends.iter().enumerate() {
        put(out, end.qpn.into());
        put(out, end.psn.into());
        let same = |back: &usize| matches!(ends[i - back], Endpoint { gid, lid, mtu, .. } if (gid, lid, mtu) == (end.gid, end.lid, end.mtu));
        match (1..=i.min(MAX_BACK)).find(same) {
            Some(back) => out.push(back as u8),
            None => {
                out.push(0);
                out.extend_from_slice(&end.gid);
                put(out, end.lid.into());
                put(out, end.mtu.into());
            }
        }
    }
}

fn endpoints(from: &mut Reader<'_>) -> Result<Endpoints, FrameError> {
    let count = from.count("endpoints", MAX_ENDPOINTS, 3)?;
    let mut ends: Endpoints = Vec::with_capacity(count);
    for _ in 0..count {
        let (qpn, psn) = (from.u32("queue pair number")?, from.u32("packet sequence number")?);
        let end = match from.byte("endpoint before")? {
            0 => Endpoint { qpn, psn, gid: from.fixed("gid")?, lid: from.u16("lid")?, mtu: from.u16("mtu")? },
            back => {
                let before = ends.len().checked_sub(back.into()).and_then(|at| ends.get(at));
                let before = before.filter(|_| usize::from(back) <= MAX_BACK).ok_or(FrameError::Value {
                    field: "endpoint before",
                    value: back.into(),
                    right: "one that was listed, at most 64 places before",
                })?;
                Endpoint { qpn, psn, ..*before }
            }
        };
        ends.push(end);
    }
    Ok(ends)
}

fn put_link(out: &mut Vec<u8>, body: &LinkBody) {
    match body {
        LinkBody::Ask { broken } => {
            out.push(0);
            put(out, (*broken).into());
        }
        LinkBody::Offer { offer, fence_epoch, rails, reads, endpoints, live } => {
            // An offer to read is a kind of its own.
            match reads {
                0 => out.push(1),
                reads => out.extend([5, *reads]),
            }
            put(out, (*offer).into());
            put(out, (*fence_epoch).into());
            put(out, (*rails).into());
            put_endpoints(out, endpoints);
            put(out, live.len() as u64);
            for room in live {
                put_key(out, &room.key);
                put(out, room.seen.len() as u64);
                for (source, destination, part) in &room.seen {
                    put(out, source.0.into());
                    put(out, destination.0.into());
                    put(out, (*part).into());
                }
            }
        }
        LinkBody::Answer { offer, fence_epoch, endpoints } => {
            out.push(2);
            put(out, (*offer).into());
            put(out, (*fence_epoch).into());
            put_endpoints(out, endpoints);
        }
        LinkBody::Ready { offer } => {
            out.push(3);
            put(out, (*offer).into());
        }
        LinkBody::Refuse { reason } => out.extend([4, *reason as u8]),
        LinkBody::Close { offer } => {
            out.push(6);
            put(out, (*offer).into());
        }
        LinkBody::Yield { offer } => {
            out.push(7);
            put(out, (*offer).into());
        }
    }
}

fn link(from: &mut Reader<'_>) -> Result<LinkBody, FrameError> {
    Ok(match from.byte("kind of link message")? {
        0 => LinkBody::Ask { broken: from.u32("broken offer")? },
        kind @ (1 | 5) => {
            let reads = if kind == 1 { 0 } else { from.byte("READs at a time")? };
            if kind == 5 && reads == 0 {
                return Err(FrameError::Value { field: "READs at a time", value: 0, right: "at least 1" });
            }
            let (offer, fence_epoch) = (from.u32("offer")?, from.u32("fence epoch")?);
            let rails = from.u16("rails")?;
            let endpoints = endpoints(from)?;
            let rooms = from.count("live rooms", MAX_LIVE, 3)?;
            let mut live = Vec::with_capacity(rooms);
            for _ in 0..rooms {
                let key = from.key()?;
                let seen = from.count("seen parts", MAX_LIVE, 3)?;
                let seen = (0..seen)
                    .map(|_| {
                        let source = Rank(from.u16("source rank")?);
                        Ok((source, Rank(from.u16("destination rank")?), from.u16("part")?))
                    })
                    .collect::<Result<_, FrameError>>()?;
                live.push(LiveRoom { key, seen });
            }
            LinkBody::Offer { offer, fence_epoch, rails, reads, endpoints, live }
        }
        2 => LinkBody::Answer {
            offer: from.u32("offer")?,
            fence_epoch: from.u32("fence epoch")?,
            endpoints: endpoints(from)?,
        },
        3 => LinkBody::Ready { offer: from.u32("offer")? },
        4 => LinkBody::Refuse { reason: from.reason()? },
        6 => LinkBody::Close { offer: from.u32("offer")? },
        7 => LinkBody::Yield { offer: from.u32("offer")? },
        value => {
            return Err(FrameError::Value {
                field: "kind of link message",
                value: value.into(),
                right: "0 to 7",
            });
        }
    })
}

/// Appends a Create or, with the same fields, an Assign.
pub(super) fn put_assign(out: &mut Vec<u8>, key: &RoomKey, peer: InstanceId, request: &Request) {
    out.push(10);
    put_key(out, key);
    put(out, peer.0);
    put_request(out, request);
}

/// Appends a message.
pub fn encode(message: &Message, out: &mut Vec<u8>) {
    match message {
        Message::Register { role, claim, facts } => {
            out.extend([0, *role as u8]);
            put(out, claim.0);
            put_facts(out, facts.as_deref());
        }
        Message::Welcome { instance, lease } => {
            out.push(1);
            put(out, instance.0);
            put(out, lease.0);
        }
        Message::Refused { reason, why } => {
            out.extend([2, *reason as u8]);
            let mut len = why.len().min(MAX_TEXT);
            while !why.is_char_boundary(len) {
                len -= 1;
            }
            put(out, len as u64);
            out.extend_from_slice(&why.as_bytes()[..len]);
        }
        Message::Heartbeat => out.push(3),
        Message::Leave => out.push(4),
        Message::Query { instance } => {
            out.push(5);
            put(out, instance.0);
        }
        Message::FactsOf { instance, facts } => {
            out.push(6);
            put(out, instance.0);
            put_facts(out, facts.as_deref());
        }
        Message::Joined(member) => {
            out.push(7);
            put(out, member.instance.0);
            out.push(member.role as u8);
            put(out, member.node.0.into());
            put(out, member.pages.into());
            put(out, member.page_size.into());
            put(out, member.groups.into());
        }
        Message::Gone { instance } => {
            out.push(8);
            put(out, instance.0);
        }
        Message::Create { key, prefill, decode, request } => {
            out.push(9);
            put_key(out, key);
            put(out, prefill.0);
            put(out, decode.0);
            put_request(out, request);
        }
        Message::Assign { key, peer, request } => put_assign(out, key, *peer, request),
        Message::Publish(list) => {
            // One with staging slots is a kind of its own.
            out.push(if list.stage.is_empty() { 11 } else { 19 });
            put_pages(out, list);
            if !list.stage.is_empty() {
                put_runs(out, &list.stage);
            }
        }
        Message::Abort { key, reason } => {
            out.push(12);
            put_key(out, key);
            out.push(*reason as u8);
        }
        Message::Cancel { key, reason } => {
            out.push(20);
            put_key(out, key);
            out.push(*reason as u8);
        }
        Message::Short => out.push(21),
        Message::Report { key, report } => {
            out.push(13);
            put_key(out, key);
            out.push(u8::from(report.delivered) | u8::from(report.clean) << 1);
        }
        Message::Done { key, outcome } => {
            out.push(14);
            put_key(out, key);
            match outcome {
                Outcome::Finished => out.push(0),
                Outcome::Preempted { tokens } => {
                    out.push(1);
                    put(out, (*tokens).into());
                }
                Outcome::Failed(reason) => out.extend([2, *reason as u8]),
            }
        }
        Message::Link { peer, body } => {
            out.push(15);
            put(out, peer.0);
            put_link(out, body);
        }
        Message::Produced { key, before, pieces, last } => {
            out.push(16);
            put_key(out, key);
            put(out, (*before).into());
            put_pieces(out, pieces);
            match last.as_deref() {
                None => out.push(0),
                Some([]) => out.push(1),
                Some(sums) => {
                    out.push(2);
                    put(out, sums.len() as u64);
                    sums.iter().for_each(|sum| put(out, *sum));
                }
            }
        }
        Message::Scattered { key, done } => {
            out.push(18);
            put_key(out, key);
            put(out, done.len() as u64);
            done.iter().for_each(|count| put(out, (*count).into()));
        }
        Message::Delivered { key, timing } => {
            out.push(17);
            put_key(out, key);
            put(out, timing.cached.into());
            [timing.queued, timing.compute, timing.handoff].iter().for_each(|span| put(out, span.0));
        }
    }
}

/// Reads a message that takes all of `bytes`.
pub fn decode(bytes: &[u8]) -> Result<Message, FrameError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(FrameError::TooLong {
            field: "message",
            value: bytes.len() as u64,
            max: MAX_MESSAGE as u64,
        });
    }
    let mut reader = Reader { left: bytes };
    let from = &mut reader;
    let message = match from.byte("kind of message")? {
        0 => Message::Register { role: from.role()?, claim: from.instance()?, facts: facts(from)? },
        1 => Message::Welcome { instance: from.instance()?, lease: Span(from.u64("lease")?) },
        2 => {
            let reason = from.reason()?;
            let len = from.count("text", MAX_TEXT as u64, 1)?;
            let text = std::str::from_utf8(from.bytes("text", len)?).map_err(|error| FrameError::Value {
                field: "text, first wrong byte",
                value: error.valid_up_to() as u64,
                right: "UTF-8",
            })?;
            Message::Refused { reason, why: text.into() }
        }
        3 => Message::Heartbeat,
        4 => Message::Leave,
        5 => Message::Query { instance: from.instance()? },
        6 => Message::FactsOf { instance: from.instance()?, facts: facts(from)? },
        7 => Message::Joined(Member {
            instance: from.instance()?,
            role: from.role()?,
            node: NodeId(from.u32("node")?),
            pages: from.u32("pages")?,
            page_size: from.u32("page size")?,
            groups: from.u16("groups")?,
        }),
        8 => Message::Gone { instance: from.instance()? },
        9 => Message::Create {
            key: from.key()?,
            prefill: from.instance()?,
            decode: from.instance()?,
            request: request(from)?,
        },
        10 => Message::Assign { key: from.key()?, peer: from.instance()?, request: request(from)? },
        11 => Message::Publish(pages(from)?),
        12 => Message::Abort { key: from.key()?, reason: from.reason()? },
        21 => Message::Short,
        20 => Message::Cancel { key: from.key()?, reason: from.reason()? },
        13 => {
            let key = from.key()?;
            let bits = from.byte("report")?;
            if bits > 3 {
                return Err(FrameError::Value { field: "report", value: bits.into(), right: "0 to 3" });
            }
            Message::Report { key, report: Report { delivered: bits & 1 != 0, clean: bits & 2 != 0 } }
        }
        14 => {
            let key = from.key()?;
            let outcome = match from.byte("outcome")? {
                0 => Outcome::Finished,
                1 => Outcome::Preempted { tokens: from.u32("tokens")? },
                2 => Outcome::Failed(from.reason()?),
                value => {
                    return Err(FrameError::Value { field: "outcome", value: value.into(), right: "0 to 2" });
                }
            };
            Message::Done { key, outcome }
        }
        15 => Message::Link { peer: from.instance()?, body: link(from)? },
        16 => Message::Produced {
            key: from.key()?,
            before: from.u32("pieces before")?,
            pieces: pieces(from)?,
            last: rest(from)?,
        },
        19 => {
            let list = pages(from)?;
            let (stage, slots) = runs(from)?;
            if slots == 0 {
                return Err(FrameError::Value { field: "staging slots", value: 0, right: "at least 1" });
            }
            Message::Publish(PageList { stage, ..list })
        }
        18 => {
            let key = from.key()?;
            let feeds = from.count("feeds", MAX_ENDPOINTS, 1)?;
            let done = (0..feeds).map(|_| from.u32("staged parts")).collect::<Result<_, _>>()?;
            Message::Scattered { key, done }
        }
        17 => Message::Delivered {
            key: from.key()?,
            timing: Timing {
                cached: from.u32("cached tokens")?,
                queued: Span(from.u64("time queued")?),
                compute: Span(from.u64("time of compute")?),
                handoff: Span(from.u64("time of handoff")?),
            },
        },
        kind => return Err(FrameError::Kind(kind)),
    };
    match reader.left.len() {
        0 => Ok(message),
        left => Err(FrameError::Trailing { left }),
    }
}
