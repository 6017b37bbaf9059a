//! Laws that the figures of `kvrail perftest` on a simulated NIC must obey, and how far they are from what was measured on real ones.

use engine::fabric::LinkLayer;
use engine::time::Span;
use experiments::perftest::csv::{COLUMNS, Row};
use experiments::perftest::local::{self, Clock};
use experiments::perftest::{Bandwidth, Figures, Latency, Metric, Op, Options};
use sim::fabric::duo::{DuoSpec, SimDuo};
use sim::nic::{Duration, Headers, NicProfile};
use std::path::Path;
use std::process::{Command, Output};

fn options(op: Op, metric: Metric) -> Options {
    Options {
        op,
        metric,
        qps: None,
        depth: None,
        batch: None,
        inline: None,
        signal_every: None,
        iterations: None,
    }
}

fn duo(nic: &NicProfile, link: Span, link_layer: LinkLayer) -> SimDuo {
    let gbps = nic.rate.bits_per_s() as f64 / 1e9;
    SimDuo::new(DuoSpec { nic: nic.clone(), gbps, link, link_layer, mtu: nic.mtu, ..DuoSpec::default() })
        .unwrap()
}

const LINK: Span = Span::ns(130);

fn run(nic: &NicProfile, options: &Options, size: u32) -> Figures {
    let test = options.test(size, &nic.limits()).unwrap();
    let mut duo = duo(nic, LINK, LinkLayer::Ethernet);
    let figures = local::run(&mut duo, &test, Clock::Virtual, &mut |_, _| true).unwrap();
    for host in [0, 1] {
        let left = duo.fabrics().host_ref(host).objects();
        assert_eq!(
            (left.buffers, left.memory_regions, left.queue_pairs, left.completion_queues),
            (0, 0, 0, 0)
        );
    }
    assert_eq!(duo.fabrics().counters().timeouts, 0);
    figures
}

fn bandwidth(nic: &NicProfile, options: &Options, size: u32) -> Bandwidth {
    match run(nic, options, size) {
        Figures::Bandwidth(figures) => figures,
        Figures::Latency(_) => panic!("asked for bandwidth"),
    }
}

fn latency(nic: &NicProfile, op: Op, size: u32) -> Latency {
    match run(nic, &options(op, Metric::Lat), size) {
        Figures::Latency(figures) => figures,
        Figures::Bandwidth(_) => panic!("asked for latency"),
    }
}

#[track_caller]
fn near(got: f64, want: f64, share: f64) {
    assert!((got / want - 1.0).abs() <= share, "got {got}, want {want}");
}

/// Of each 4178 bytes on the wire 4096 are payload (RoCE v2 over IPv4), less 16 of RETH a message.
#[test]
fn large_writes_reach_line_rate_times_goodput() {
    let write = options(Op::Write, Metric::Bw);
    let ideal = NicProfile::ideal();
    let line = ideal.rate.bits_per_s() as f64 / 1e9;
    for size in [1 << 20, 8 << 20] {
        let figures = bandwidth(&ideal, &write, size);
        near(figures.gbit_per_s(figures.rate), line, 1e-5);
        let headers = Headers { ethernet: 82, infiniband: 26, reth: 16, immediate: 4, aeth: 4 };
        let figures = bandwidth(&NicProfile { headers, ..NicProfile::ideal() }, &write, size);
        let packets = f64::from(size / 4096);
        near(figures.gbit_per_s(figures.rate), line * 4096.0 * packets / (4178.0 * packets + 16.0), 1e-5);
        assert!(
            figures.peak.unwrap() >= figures.rate
                && figures.mib_per_s(figures.peak.unwrap()) * 8.388608e-3 <= line
        );
    }
}

#[test]
fn latency_is_the_sum_of_the_profiles_terms() {
    for name in ["connectx-6-200g", "connectx-7-400g"] {
        let nic = experiments::nic::load(name).unwrap();
        let links = 2.0 * LINK.0 as f64;
        let sum = |terms: &[Duration]| terms.iter().map(|term| term.0.0 as f64).sum::<f64>();
        // Eight bytes are on the wire for as long as their request occupies the queue pair.
        let way = sum(&[nic.transmit, nic.qp_message, nic.receive]) + links;
        let post = sum(&[nic.build, nic.inline_copy, nic.doorbell, nic.doorbell_latency]);
        near(latency(&nic, Op::Write, 8).typical, (post + way) / 1e6, 1e-3);
        let taken = sum(&[nic.recv_cqe, nic.poll, nic.poll_cqe]);
        near(latency(&nic, Op::Send, 8).typical, (post + way + taken) / 1e6, 1e-3);
        near(latency(&nic, Op::WriteImm, 8).typical, (post + way + taken) / 1e6, 1e-3);
        // A READ has nothing to send along: the NIC fetches the request.
        let post = sum(&[nic.build, nic.doorbell, nic.doorbell_latency, nic.wqe_fetch]);
        let back = sum(&[nic.send_cqe, nic.poll, nic.poll_cqe]);
        let there = sum(&[nic.transmit, nic.receive, nic.respond]) + links;
        let read = latency(&nic, Op::Read, 8);
        near(read.typical, (post + there + way + back) / 1e6, 2e-2);
        assert!(read.stdev < 1e-9 && read.min <= read.p999 && read.p999 <= read.max);
    }
}

#[test]
fn small_messages_reach_the_profiles_rates_and_no_more() {
    let free = |nic: NicProfile| NicProfile { rate: NicProfile::ideal().rate, ..nic };
    let nic = free(NicProfile {
        qp_message: Duration(Span::ns(100)),
        nic_message: Duration(Span::ns(40)),
        ..NicProfile::ideal()
    });
    let write = Options { batch: Some(32), iterations: Some(20_000), ..options(Op::Write, Metric::Bw) };
    // 10 M/s a queue pair, 25 M/s in all.
    for (qps, rate) in [(1, 10e6), (2, 20e6), (4, 25e6)] {
        let write = Options { qps: Some(qps), ..write.clone() };
        near(bandwidth(&nic, &write, 8).rate, rate, 1e-2);
    }
    // One by one the CPU is the limit: build, doorbell, and a completion for a hundred.
    let nic = experiments::nic::load("connectx-6-200g").unwrap();
    let cpu = (nic.build.0.0 + nic.doorbell.0.0) as f64 + (nic.poll.0.0 + nic.poll_cqe.0.0) as f64 / 100.0;
    near(bandwidth(&nic, &options(Op::Write, Metric::Bw), 8).rate, 1e12 / cpu, 1e-2);
}

/// Whatever is asked for comes to its end, and the same command gives the same figures.
#[test]
fn every_combination_ends_and_is_the_same_again() {
    let nic = experiments::nic::load("connectx-7-400g").unwrap();
    for op in [Op::Write, Op::WriteImm, Op::Send, Op::Read] {
        for size in [1, 200, 4096, 70_000] {
            for (qps, depth, batch, signal_every) in
                [(1, 1, 1, 1), (3, 128, 7, 5), (2, 64, 64, 1), (1, 100, 1, 100), (2, 90, 50, 41)]
            {
                let inline = (op != Op::Read).then_some(220);
                let bw = Options {
                    qps: Some(qps),
                    depth: Some(depth),
                    batch: Some(batch),
                    signal_every: Some(signal_every),
                    iterations: Some(333),
                    inline,
                    ..options(op, Metric::Bw)
                };
                let figures = bandwidth(&nic, &bw, size);
                assert_eq!(figures.messages, 333 * u64::from(qps));
                assert!(figures.gbit_per_s(figures.rate) < 400.0 && figures.peak.unwrap() >= figures.rate);
                assert_eq!(bandwidth(&nic, &bw, size), figures);
            }
            assert_eq!(latency(&nic, op, size), latency(&nic, op, size));
        }
    }
}

/// Folder of figures measured by others, beside the repository; not part of it.
fn measured(name: &str) -> Option<Vec<Row>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/nic").join(name);
    if !path.exists() {
        eprintln!("SKIPPED: there is no {}", path.display());
        return None;
    }
    let mut reader = csv::Reader::from_path(&path).unwrap();
    assert_eq!(reader.headers().unwrap().iter().collect::<Vec<_>>(), COLUMNS, "{name}");
    let rows = reader.records().filter_map(|row| {
        let row = row.unwrap();
        // Some cells are words: "unknown" rates, ranges. Those rows say nothing to compare with.
        let number = |i: usize| row[i].parse::<f64>().ok();
        Some(Row {
            source: row[0].into(),
            nic: row[1].into(),
            link_gbps: row[2].into(),
            op: row[3].into(),
            size_bytes: number(4)? as u64,
            qps: number(5)? as u32,
            inline: number(6)? as u32,
            metric: row[7].into(),
            value: number(8)?,
            unit: row[9].into(),
            notes: row[10].into(),
        })
    });
    Some(rows.collect())
}

/// A profile against the measurements that it was made from: prints every error, and fails where the model as such would be wrong. The
/// profiles are not fitted point by point: at 4 to 16 KiB real NICs lose time that the model does not have.
#[test]
fn profiles_are_near_what_was_measured() {
    for (file, profile, link, layer, note, bound) in [
        (
            "perftest_cx6_hdr200_ib_shadeform.csv",
            "connectx-6-200g",
            LINK,
            LinkLayer::InfiniBand,
            "IB HDR",
            0.05,
        ),
        (
            "perftest_gke_a3ultra_cx7_400g_roce.csv",
            "connectx-7-400g",
            LINK,
            LinkLayer::Ethernet,
            "host mem",
            0.10,
        ),
    ] {
        let Some(rows) = measured(file) else { return };
        let nic = experiments::nic::load(profile).unwrap();
        let mut errors = Vec::new();
        for row in rows.iter().filter(|row| row.op == "WRITE" && row.notes.contains(note)) {
            let (metric, latency) = match row.metric.as_str() {
                "msg_rate" => (Metric::Bw, false),
                "lat_typical" => (Metric::Lat, true),
                _ => continue,
            };
            // The measured runs moderate completions at every size.
            let signal_every = (!latency).then_some(100);
            let options = Options {
                inline: Some(row.inline),
                qps: Some(row.qps),
                signal_every,
                iterations: Some(1000),
                ..options(Op::Write, metric)
            };
            let test = options.test(row.size_bytes as u32, &nic.limits()).unwrap();
            let got = match local::run(&mut duo(&nic, link, layer), &test, Clock::Virtual, &mut |_, _| true)
                .unwrap()
            {
                Figures::Bandwidth(figures) => figures.rate / 1e6,
                Figures::Latency(figures) => figures.typical,
            };
            let error = got / row.value - 1.0;
            println!(
                "{profile} {:>11} {:>8} B: measured {:>10.4}, simulated {got:>10.4} {}: {:+.1} %",
                row.metric,
                row.size_bytes,
                row.value,
                row.unit,
                error * 100.0
            );
            errors.push(error.abs());
        }
        errors.sort_by(f64::total_cmp);
        assert!(errors.len() >= 16, "{file}: {} rows", errors.len());
        let (median, worst) = (errors[errors.len() / 2], errors[errors.len() - 1]);
        println!("{profile}: median error {:.1} %, worst {:.1} %", median * 100.0, worst * 100.0);
        assert!(median <= bound, "{profile}: median error {median}");
    }
}

/// What kvrail writes has the columns, operations, metrics and units of the collected measurements.
#[test]
fn the_csv_is_of_the_collections_kind() {
    let Some(mut collected) = measured("perftest_cx6_hdr200_ib_shadeform.csv") else { return };
    collected.extend(measured("perftest_gke_a3ultra_cx7_400g_roce.csv").unwrap_or_default());
    collected.extend(measured("perftest_mlx4_qdr40_ib_full_suite.csv").unwrap_or_default());
    let kinds = |metric: &str| {
        let units = collected.iter().filter(|row| row.metric == metric).map(|row| row.unit.as_str());
        units.collect::<std::collections::BTreeSet<_>>()
    };
    let nic = experiments::nic::load("connectx-6-200g").unwrap();
    let about = experiments::perftest::csv::About {
        nic: nic.name.clone(),
        bits_per_s: nic.rate.bits_per_s(),
        notes: String::new(),
    };
    for metric in [Metric::Bw, Metric::Lat] {
        let test = options(Op::Write, metric).test(64, &nic.limits()).unwrap();
        let rows =
            experiments::perftest::csv::rows(&about, &test, &run(&nic, &options(Op::Write, metric), 64));
        for row in &rows {
            assert!(collected.iter().any(|known| known.op == row.op));
            let known = kinds(&row.metric);
            // Peak, maximum and spread are kvrail's own.
            assert!(known.is_empty() || known.contains(row.unit.as_str()), "{} in {}", row.metric, row.unit);
        }
        let common = rows.iter().filter(|row| !kinds(&row.metric).is_empty()).count();
        assert!(common >= if metric == Metric::Bw { 2 } else { 4 });
    }
}

fn kvrail(line: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvrail"));
    command.arg("perftest").args(line.split_whitespace()).current_dir(env!("CARGO_TARGET_TMPDIR"));
    command.output().expect("the command starts")
}

#[test]
fn the_command_prints_a_table_and_writes_the_csv() {
    let output =
        kvrail("--op write --metric bw --sizes 2..16,4096 --nic ideal --iterations 100 --csv figures.csv");
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(
        table.contains("WRITE bandwidth on ideal") && table.contains("MiB/s") && table.contains("Gb/s"),
        "{table}"
    );
    let sizes: Vec<&str> = table.lines().skip(3).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(sizes, ["2", "4", "8", "16", "4096"]);
    let mut reader =
        csv::Reader::from_path(Path::new(env!("CARGO_TARGET_TMPDIR")).join("figures.csv")).unwrap();
    assert_eq!(reader.headers().unwrap().iter().collect::<Vec<_>>(), COLUMNS);
    let rows: Vec<Row> = reader.deserialize().map(Result::unwrap).collect();
    assert_eq!(rows.len(), 5 * 3);
    assert!(rows.iter().all(|row| row.op == "WRITE" && row.link_gbps == "200" && row.value > 0.0));
    // A NIC from a file.
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/nic/ideal.yaml");
    let again = kvrail(&format!("--op write --metric bw --sizes 2..16,4096 --iterations 100 --nic {file}"));
    assert_eq!(String::from_utf8(again.stdout).unwrap(), table);
}

#[test]
fn wrong_arguments_say_what_would_be_right() {
    let write = "--op write --metric bw --sizes 8";
    for (line, parts) in [
        (write.to_owned(), &["--nic", "--device"][..]),
        (format!("{write} --nic ideal --device mlx5_0"), &["--nic", "--device", "cannot be used"]),
        (format!("{write} --nic connectx-9"), &["connectx-9", "connectx-7-400g", "soft-roce", "ideal"]),
        (format!("{write} --nic no/such.yaml"), &["no/such.yaml"]),
        (format!("{write} --nic ideal --depth 40000"), &["--depth 40000", "32768"]),
        ("--op write --metric bw --sizes 2147483649 --nic ideal".to_owned(), &["2147483649", "2147483648"]),
        ("--op write --metric bw --sizes 3..8 --nic ideal".to_owned(), &["--sizes 3..8", "2..8388608"]),
        ("--op atomic --metric bw --sizes 8 --nic ideal".to_owned(), &["atomic", "write_imm"]),
        ("--op write --metric bw --nic ideal".to_owned(), &["--sizes"]),
        (format!("{write} --connect tcp://a:1 --nic ideal"), &["--connect", "--nic"]),
        (format!("{write} --nic ideal --link 5"), &["--link", "unit"]),
        ("--serve tcp://a:1 --device mlx5_0 --depth 5".to_owned(), &["--serve", "--depth"]),
    ] {
        let output = kvrail(&line);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{line}: {error}");
        assert!(output.stdout.is_empty(), "{line}");
        for part in parts {
            assert!(error.contains(part), "{line}: {error}\nlacks {part}");
        }
    }
}

#[test]
fn what_the_machine_lacks_is_exit_status_3() {
    // Without the feature, without libibverbs' devices, or without this one.
    let output = kvrail("--op write --metric bw --sizes 8 --device no_such_device");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{error}");
    assert!(error.contains("no_such_device") && error.starts_with("kvrail: "), "{error}");
    let output = kvrail("--op write --metric bw --sizes 8 --nic ideal --csv no/such/folder/a.csv");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{error}");
    assert!(error.contains("no/such/folder/a.csv"), "{error}");
}
