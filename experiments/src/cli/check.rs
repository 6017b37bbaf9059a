//! `kvrail check`.

use std::fmt::Write as _;

use super::{CheckArgs, Failure, interrupt, print, status};
use crate::build;
use crate::report::table::{bytes, count};
use crate::spec::{SideSpec, Spec};
use crate::workload;

pub(super) fn check(args: &CheckArgs) -> Result<(), Failure> {
    let spec = Spec::load(&args.file, &args.sets).map_err(Failure::input)?;
    if args.resolved {
        print(&spec.resolved().map_err(Failure::broken)?);
        return Ok(());
    }
    let model = spec.model().map_err(Failure::input)?;
    let mut out = format!("{}: right\n", args.file.display());
    let per_token = model.bytes_per_token(spec.dtype).map_err(Failure::input)?;
    let _ = writeln!(out, "{:<10}{} {}, {per_token} bytes of KV per token", "model", model.name, spec.dtype);
    for (name, side) in [("prefill", &spec.cluster.prefill), ("decode", &spec.cluster.decode)] {
        let _ = writeln!(out, "{name:<10}{}", side_line(&spec, side)?);
    }
    let _ = writeln!(
        out,
        "{:<10}{} hosts with {} of {}",
        "cluster",
        spec.hosts(),
        spec.cluster.nics_per_host,
        spec.cluster.nic
    );
    let _ = writeln!(out, "{:<10}{}", "compute", spec.compute.profile);
    let _ = writeln!(out, "{:<10}{}", "workload", workload_line(&spec, &model)?);
    print(&out);
    Ok(())
}

fn side_line(spec: &Spec, side: &SideSpec) -> Result<String, Failure> {
    let model = spec.model().map_err(Failure::input)?;
    let layout = side.layout(&model, spec.dtype).map_err(Failure::input)?;
    let per_rank = layout.ranks().iter().map(models::RankLayout::bytes_per_token).max().unwrap_or(0);
    let pages = side.pages(&layout);
    let tokens = tokens_of(spec, side)?;
    Ok(format!(
        "{} instances, tp {} pp {} dp {}, {} bytes per token and rank, {} pages of {} tokens: {} tokens per DP group, {} per GPU",
        side.instances,
        side.tp,
        side.pp,
        side.dp,
        per_rank,
        count(u64::from(pages)),
        side.page_size,
        count(tokens),
        bytes(tokens * per_rank),
    ))
}

/// Tokens that a DP group of an instance has pages for.
fn tokens_of(spec: &Spec, side: &SideSpec) -> Result<u64, Failure> {
    let model = spec.model().map_err(Failure::input)?;
    let layout = side.layout(&model, spec.dtype).map_err(Failure::input)?;
    Ok(u64::from(side.pages(&layout)) * u64::from(side.page_size))
}

/// Reads the whole workload, so that a wrong line is found before a run comes to it.
fn workload_line(spec: &Spec, model: &models::Model) -> Result<String, Failure> {
    interrupt::catch();
    let context = model.context_len;
    let rooms = [tokens_of(spec, &spec.cluster.prefill)?, tokens_of(spec, &spec.cluster.decode)?];
    let seed = spec.seeds().first().copied().unwrap_or(1);
    let (mut requests, mut prompt, mut output, mut last) = (0_u64, 0_u64, 0_u64, 0_u64);
    let (mut long, mut large, mut least) = (0_u64, [0_u64; 2], [u64::MAX; 2]);
    for request in workload::open(&spec.workload, seed).map_err(Failure::input)? {
        let request = request.map_err(Failure::input)?;
        requests += 1;
        prompt += u64::from(request.prompt);
        output += u64::from(request.output);
        last = request.arrival_ps;
        let tokens = u64::from(request.prompt) + u64::from(request.output);
        long += u64::from(tokens > u64::from(context));
        // The KV of the last token is never written.
        for (side, kept) in [u64::from(request.prompt), tokens.saturating_sub(1)].into_iter().enumerate() {
            large[side] += u64::from(kept > rooms[side]);
            least[side] = least[side].min(kept);
        }
        if interrupt::requested() {
            return Err(Failure { status: status::INTERRUPTED, message: "interrupted".to_owned() });
        }
    }
    if let (0, Some(path)) = (requests, &spec.workload.path) {
        return Err(Failure::input(build::no_requests(path)));
    }
    for (side, name) in ["prefill", "decode"].into_iter().enumerate() {
        if requests > 0 && large[side] == requests {
            return Err(Failure::input(format_args!(
                "cluster.{name}.memory: a DP group of an instance holds {} tokens, and not one of the {} requests fits: \
                 the smallest has {}",
                count(rooms[side]),
                count(requests),
                count(least[side])
            )));
        }
    }
    let mean = |sum: u64| sum as f64 / requests.max(1) as f64;
    let mut line = format!(
        "{} requests over {:.3} s, {:.1} prompt and {:.1} output tokens on average",
        count(requests),
        last as f64 / 1e12,
        mean(prompt),
        mean(output)
    );
    for (side, name) in ["prefill", "decode"].into_iter().enumerate() {
        if large[side] > 0 {
            let _ = write!(
                line,
                "; {} do not fit into the memory of a {name} instance and will be rejected",
                count(large[side])
            );
        }
    }
    if long > 0 {
        let _ = write!(
            line,
            "; {} are longer than the model's context of {context} and will be rejected",
            count(long)
        );
    }
    Ok(line)
}
