//! Looks for what the bindings of libibverbs need to be built, before they are.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Whether a command is in PATH.
fn command(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|folder| folder.join(name).is_file())
}

/// Whether the C compiler would link with a library. Without a compiler: yes, the compiler comes first.
fn linkable(name: &str) -> bool {
    let compiler = env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let asked =
        Command::new(compiler).arg(format!("-print-file-name=lib{name}.so")).stderr(Stdio::null()).output();
    // It prints the bare name back where it finds nothing.
    asked.map_or(true, |output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_absolute())
}

/// Whether a folder, or one in it that is named like that and ends like that, holds libclang.
fn libclang() -> bool {
    let in_folder = |folder: &Path| {
        let entries = folder.read_dir().into_iter().flatten().flatten();
        entries.into_iter().any(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with("libclang") && name.contains(".so")
        })
    };
    let mut folders: Vec<PathBuf> = env::var_os("LIBCLANG_PATH").into_iter().map(PathBuf::from).collect();
    folders.extend(["/usr/lib64", "/usr/lib", "/usr/local/lib"].map(PathBuf::from));
    for entry in Path::new("/usr/lib").read_dir().into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with("llvm-") {
            folders.push(entry.path().join("lib"));
        } else if name.ends_with("-linux-gnu") {
            folders.push(entry.path());
        }
    }
    // Where LIBCLANG_PATH names the file itself.
    folders.iter().any(|folder| folder.is_file() || in_folder(folder)) || command("llvm-config")
}

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    for variable in ["PATH", "CC", "LIBCLANG_PATH"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    // Debian's package, and whether what it brings is there.
    let needed = [
        ("gcc", command("cc") || env::var_os("CC").is_some()),
        ("cmake", command("cmake")),
        ("make", command("make") || command("ninja")),
        ("pkg-config", command("pkg-config")),
        ("python3", command("python3")),
        ("libclang-dev", libclang()),
        ("libnl-3-dev", linkable("nl-3")),
        ("libnl-route-3-dev", linkable("nl-route-3")),
        ("libibverbs-dev", linkable("ibverbs")),
    ];
    let missing: Vec<&str> = needed.iter().filter(|(_, there)| !there).map(|(package, _)| *package).collect();
    if !missing.is_empty() {
        println!("cargo::error=the feature `verbs` cannot be built; missing: {}", missing.join(", "));
        println!("cargo::error=on Debian and Ubuntu: sudo apt-get install {}", missing.join(" "));
        println!("cargo::error=elsewhere: what brings the same; without the feature none of it is needed");
    }
}
