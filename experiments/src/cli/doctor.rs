//! `kvrail doctor`.

use std::path::Path;

use super::{DoctorArgs, Failure, print, status};
use crate::doctor;
use crate::spec::Spec;

pub(super) fn doctor(args: &DoctorArgs) -> Result<(), Failure> {
    let spec = match &args.file {
        Some(file) => Spec::load(file, &args.sets).map_err(Failure::input)?,
        None => Spec::parse("{}", Path::new("defaults"), &args.sets).map_err(Failure::input)?,
    };
    if !args.root.is_dir() {
        return Err(Failure::input(format_args!("--root {}: not a folder", args.root.display())));
    }
    let report = doctor::examine(&args.root, doctor::build(), &spec);
    if args.json {
        let json = serde_json::to_string_pretty(&report)
            .map_err(|error| Failure::broken(format_args!("cannot write the report as JSON: {error}")))?;
        print(&(json + "\n"));
    } else {
        print(&report.table());
    }
    if report.usable {
        return Ok(());
    }
    let message = "experiments cannot run on devices here; simulated ones can".to_owned();
    Err(Failure { status: status::ENVIRONMENT, message })
}
