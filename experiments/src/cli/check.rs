//! `kvrail check`.

use std::fmt::Write as _;

use super::{CheckArgs, Failure, interrupt, print, status};
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
    let _ = writeln!(out, "{:<10}{}", "workload", workload_line(&spec, model.context_len)?);
    print(&out);
    Ok(())
}

fn side_line(spec: &Spec, side: &SideSpec) -> Result<String, Failure> {
    let model = spec.model().map_err(Failure::input)?;
    let layout = side.layout(&model, spec.dtype).map_err(Failure::input)?;
    let per_rank = layout.ranks().iter().map(models::RankLayout::bytes_per_token).max().unwrap_or(0);
    let pages = side.pages(&layout);
    let tokens = u64::from(pages) * u64::from(side.page_size);
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

/// Reads the whole workload, so that a wrong line is found before a run comes to it.
fn workload_line(spec: &Spec, context: u32) -> Result<String, Failure> {
    interrupt::catch();
    let seed = spec.seeds().first().copied().unwrap_or(1);
    let (mut requests, mut prompt, mut output, mut last, mut long) = (0_u64, 0_u64, 0_u64, 0_u64, 0_u64);
    for request in workload::open(&spec.workload, seed).map_err(Failure::input)? {
        let request = request.map_err(Failure::input)?;
        requests += 1;
        prompt += u64::from(request.prompt);
        output += u64::from(request.output);
        last = request.arrival_ps;
        long += u64::from(u64::from(request.prompt) + u64::from(request.output) > u64::from(context));
        if interrupt::requested() {
            return Err(Failure { status: status::INTERRUPTED, message: "interrupted".to_owned() });
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
    if long > 0 {
        let _ = write!(
            line,
            "; {} are longer than the model's context of {context} and will be rejected",
            count(long)
        );
    }
    Ok(line)
}
