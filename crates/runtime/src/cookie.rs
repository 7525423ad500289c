use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The shared secret.
pub struct Cookie {
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// It was made just now: the user must bring it to the next machine.
    pub fresh: bool,
}

/// Why there is no cookie.
#[derive(Debug, thiserror::Error)]
pub enum CookieError {
    /// Others may read it.
    #[error("the cookie file {path} can be read by others (mode {mode:o}); run: chmod 600 {path}")]
    Readable {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It holds nothing.
    #[error("the cookie file {0} is empty; remove it to have one made, or put the cluster's secret in it")]
    Empty(PathBuf),
    /// It cannot be read or made.
    #[error("cannot use the cookie file {path}; give another with --cookie-file")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// Where the cookie lies unless told otherwise: shared by all data directories of a user.
pub fn default_cookie_path() -> PathBuf {
    let root = rustix_is_root();
    let home = std::env::var_os("HOME").map(PathBuf::from);
    match home {
        _ if root => "/etc/tombolo/cookie".into(),
        Some(home) => home.join(".config/tombolo/cookie"),
        None => "/etc/tombolo/cookie".into(),
    }
}

fn rustix_is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}

impl Cookie {
    /// Reads the secret, or makes one (32 random bytes in hexadecimal, mode 0600).
    pub fn load_or_make(path: &Path) -> Result<Cookie, CookieError> {
        let io = |source| CookieError::Io { path: path.into(), source };
        if !path.exists() {
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent).map_err(io)?;
            }
            match make(path) {
                Ok(bytes) => return Ok(Cookie { bytes, fresh: true }),
                // Another node of this host was first.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(io(e)),
            }
        }
        Cookie::load(path)
    }

    /// Keeps a secret in a file that must not be there yet (mode 0600).
    pub fn keep(path: &Path, bytes: &[u8]) -> Result<(), CookieError> {
        write(path, bytes).map_err(|source| CookieError::Io { path: path.into(), source })
    }

    /// Reads a secret that must be there.
    pub fn load(path: &Path) -> Result<Cookie, CookieError> {
        let io = |source| CookieError::Io { path: path.into(), source };
        let mode = fs::metadata(path).map_err(io)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(CookieError::Readable { path: path.into(), mode });
        }
        let text = fs::read(path).map_err(io)?;
        let bytes = text.trim_ascii().to_vec();
        if bytes.is_empty() { Err(CookieError::Empty(path.into())) } else { Ok(Cookie { bytes, fresh: false }) }
    }
}

fn make(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut random = [0u8; 32];
    getrandom::fill(&mut random).map_err(|e| std::io::Error::other(e.to_string()))?;
    let text: String = random.iter().map(|b| format!("{b:02x}")).collect();
    write(path, text.as_bytes()).map(|()| text.into_bytes())
}

fn write(path: &Path, text: &[u8]) -> std::io::Result<()> {
    // Written whole under another name, so that nobody reads half of it.
    let next = path.with_extension(format!("{}.new", std::process::id()));
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&next)?;
    file.write_all(&[text, b"\n"].concat())?;
    file.sync_all()?;
    let linked = fs::hard_link(&next, path);
    fs::remove_file(&next)?;
    linked
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_cookie_is_made_once_and_kept_from_others() {
        let dir = std::env::temp_dir().join(format!("tombolo-cookie-{}", std::process::id()));
        let path = dir.join("deep/cookie");
        let made = Cookie::load_or_make(&path).expect("made");
        assert!(made.fresh && made.bytes.len() == 64);
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
        let read = Cookie::load_or_make(&path).expect("read");
        assert!(!read.fresh && read.bytes == made.bytes);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
        let refused = Cookie::load_or_make(&path).err().expect("refused").to_string();
        assert!(refused.contains("640") && refused.contains("chmod 600"), "{refused}");
        fs::write(&path, " \n").expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        assert!(matches!(Cookie::load_or_make(&path), Err(CookieError::Empty(_))));
        fs::remove_dir_all(&dir).expect("cleaned");
    }
}
