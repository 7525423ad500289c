//! What `mount(8)` calls: this program under the name `mount.walkenfs`.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

/// Where a node that runs as a service has its data, if none is named.
const SERVICE_DATA: &str = "/var/lib/tombolo";
/// Exit statuses of `mount(8)`.
const USAGE: u8 = 1;
const FAILED: u8 = 32;

/// What is to be done.
#[derive(PartialEq, Eq, Debug)]
enum Plan {
    /// This very program, with these arguments.
    Mount(Vec<OsString>),
    /// What is mounted there is to be read-only from now on, or not.
    Remount(OsString, bool),
    Nothing,
}

/// Is it called as the helper of `mount(8)`?
pub(crate) fn is_called(program: Option<&OsStr>) -> bool {
    let name = program.map(|p| p.as_bytes().rsplit(|c| *c == b'/').next().unwrap_or_default());
    matches!(name, Some(b"mount.walkenfs" | b"mount.fuse.walkenfs"))
}

pub(crate) fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    match plan(args.collect()) {
        Err(why) => {
            eprintln!(
                "mount.walkenfs: {why}\nUsage: mount.walkenfs FILESYSTEM DIR [-o OPTIONS]; see `tombolo help mount`"
            );
            ExitCode::from(USAGE)
        }
        Ok(Plan::Nothing) => ExitCode::SUCCESS,
        Ok(Plan::Remount(dir, ro)) => match fuse::remount(&dir, ro) {
            Ok(()) => ExitCode::SUCCESS,
            Err(e) => {
                eprintln!("mount.walkenfs: cannot mount {} anew: {e}", dir.to_string_lossy());
                ExitCode::from(FAILED)
            }
        },
        Ok(Plan::Mount(args)) => {
            let why = match std::env::current_exe() {
                Ok(program) => Command::new(program).arg0("tombolo").args(args).exec(),
                Err(e) => e,
            };
            eprintln!("mount.walkenfs: cannot run tombolo: {why}");
            ExitCode::from(FAILED)
        }
    }
}

fn plan(args: Vec<OsString>) -> Result<Plan, String> {
    let (mut places, mut options, mut fake) = (Vec::new(), Vec::new(), false);
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        match arg.as_bytes() {
            b"-o" => options.push(args.next().ok_or("-o without options")?),
            b"-t" | b"-N" => drop(args.next()),
            b"-f" => fake = true,
            b"-r" => options.push("ro".into()),
            b"-w" => options.push("rw".into()),
            [b'-', b'o', rest @ ..] => options.push(OsString::from_vec(rest.to_vec())),
            // Verbose, sloppy, and nothing in /etc/mtab.
            [b'-', ..] => {}
            _ => places.push(arg),
        }
    }
    let [source, dir] =
        <[OsString; 2]>::try_from(places).map_err(|_| "a filesystem's name and a directory are needed")?;
    let options = options.iter().map(|o| o.to_string_lossy()).collect::<Vec<_>>().join(",");
    let (mut data, mut more, mut rest, mut again) = (None, Vec::new(), Vec::new(), false);
    for word in options.split(',').filter(|w| !w.is_empty()) {
        match word.split_once('=') {
            Some(("data", value)) => data = Some(OsString::from(value)),
            Some(("config", value)) => more.extend(["--config".into(), value.into()]),
            Some(("copies", value)) => more.extend(["--copies".into(), value.into()]),
            _ if word == "remount" => again = true,
            _ => rest.push(word),
        }
    }
    if fake {
        return Ok(Plan::Nothing);
    }
    if again {
        return Ok(Plan::Remount(dir, rest.iter().rev().find(|w| ["ro", "rw"].contains(w)) == Some(&"ro")));
    }
    let service = std::path::Path::new(SERVICE_DATA).exists().then(|| SERVICE_DATA.into());
    let mut out: Vec<OsString> = vec!["mount".into(), source, dir, "--background".into()];
    out.extend(data.or(service).into_iter().flat_map(|data| ["--data".into(), data]));
    out.extend(more);
    if !rest.is_empty() {
        out.extend(["-o".into(), rest.join(",").into()]);
    }
    Ok(Plan::Mount(out))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn of(words: &str) -> Result<Plan, String> {
        plan(words.split(' ').map(OsString::from).collect())
    }

    #[test]
    fn what_mount_says_becomes_a_command() {
        let words = |plan| match plan {
            Ok(Plan::Mount(args)) => {
                args.iter().map(|a| a.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
            }
            other => panic!("{other:?}"),
        };
        let said = words(of("shared /mnt -sv -o rw,noatime,data=/d,copies=2,_netdev -t walkenfs"));
        assert_eq!(said, "mount shared /mnt --background --data /d --copies 2 -o rw,noatime,_netdev");
        assert!(words(of("shared /mnt -r -odata=/d")).ends_with("--data /d -o ro"));
        assert_eq!(of("shared /mnt -f"), Ok(Plan::Nothing));
        assert_eq!(of("shared /mnt -o rw,remount,ro"), Ok(Plan::Remount("/mnt".into(), true)));
        assert!(of("shared").is_err() && of("shared /mnt -o").is_err() && of("a b c").is_err());
    }

    #[test]
    fn it_goes_by_its_name() {
        for (name, so) in [("/sbin/mount.walkenfs", true), ("mount.fuse.walkenfs", true), ("/usr/bin/tombolo", false)] {
            assert_eq!(is_called(Some(OsStr::new(name))), so);
        }
        assert!(!is_called(None));
    }
}
