//! What an instance registers with, as bytes.

use super::super::frame::FrameError;
use super::super::message::{Facts, RankFacts, Region};
use super::super::reader::Reader;
use super::{MAX_POOLS, MAX_PORTS, MAX_RANKS, put};

fn put_region(out: &mut Vec<u8>, region: &Region) {
    put(out, region.addr);
    put(out, region.rkeys.len() as u64);
    for key in &region.rkeys {
        out.extend_from_slice(&key.to_le_bytes());
    }
}

fn region(from: &mut Reader<'_>) -> Result<Region, FrameError> {
    let addr = from.u64("address")?;
    let ports = from.count("remote keys", MAX_PORTS, 4)?;
    let rkeys =
        (0..ports).map(|_| from.fixed("remote key").map(u32::from_le_bytes)).collect::<Result<_, _>>()?;
    Ok(Region { addr, rkeys })
}

pub(super) fn put_facts(out: &mut Vec<u8>, facts: Option<&Facts>) {
    let Some(facts) = facts else { return out.push(0) };
    // Facts with staging are a kind of their own.
    let staging = facts.stage_slots > 0;
    out.push(if staging { 2 } else { 1 });
    out.extend_from_slice(&facts.fingerprint.to_le_bytes());
    for number in [facts.tp, facts.pp, facts.dp] {
        put(out, number.into());
    }
    put(out, facts.page_size.into());
    out.push(facts.head_major.into());
    put(out, facts.pages.into());
    put(out, facts.slots.into());
    if staging {
        put(out, facts.stage_slots.into());
        put(out, facts.stage_bytes);
    }
    put(out, facts.ranks.len() as u64);
    for rank in &facts.ranks {
        put(out, rank.pools.len() as u64);
        rank.pools.iter().for_each(|pool| put_region(out, pool));
        put(out, rank.pitches.len() as u64);
        rank.pitches.iter().for_each(|pitch| put(out, *pitch));
        put_region(out, &rank.aux);
        if staging {
            put_region(out, &rank.stage);
        }
    }
}

pub(super) fn facts(from: &mut Reader<'_>) -> Result<Option<Box<Facts>>, FrameError> {
    let staging = match from.byte("whether facts follow")? {
        0 => return Ok(None),
        kind @ (1 | 2) => kind == 2,
        value => {
            let (field, right) = ("whether facts follow", "0, 1, or 2 with staging");
            return Err(FrameError::Value { field, value: value.into(), right });
        }
    };
    let mut facts = Facts {
        fingerprint: u64::from_le_bytes(from.fixed("fingerprint")?),
        tp: from.u16("tp")?,
        pp: from.u16("pp")?,
        dp: from.u16("dp")?,
        page_size: from.u32("page size")?,
        head_major: from.bool("head-major")?,
        pages: from.u32("pages")?,
        slots: from.u32("slots")?,
        ..Facts::default()
    };
    if staging {
        facts.stage_slots = from.u32("staging slots")?;
        facts.stage_bytes = from.u64("bytes of a staging slot")?;
        if facts.stage_slots == 0 {
            return Err(FrameError::Value { field: "staging slots", value: 0, right: "at least 1" });
        }
    }
    let ranks = from.count("ranks", MAX_RANKS, 4)?;
    facts.ranks.reserve(ranks);
    for _ in 0..ranks {
        let pools = from.count("pools", MAX_POOLS, 2)?;
        let pools = (0..pools).map(|_| region(from)).collect::<Result<_, _>>()?;
        let pitches = from.count("pitches", MAX_POOLS, 1)?;
        let pitches = (0..pitches).map(|_| from.u64("pitch")).collect::<Result<_, _>>()?;
        let aux = region(from)?;
        let stage = if staging { region(from)? } else { Region::default() };
        facts.ranks.push(RankFacts { pools, pitches, aux, stage });
    }
    Ok(Some(Box::new(facts)))
}
