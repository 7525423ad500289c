//! Lists of nodes as text: one a line.

use crate::{ANSWER_BYTES_MAX, ProviderError};
use membership::Place;
use std::io::Read;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::path::Path;

pub(crate) fn read(path: &Path) -> Result<String, ProviderError> {
    let wrong = |source| ProviderError::File { path: path.into(), source };
    bounded(std::fs::File::open(path).map_err(wrong)?).map_err(wrong)?.ok_or(ProviderError::TooLong)
}

/// All there is to read; `None`: more than a list may have. Bytes that are no text are no nodes either.
pub(crate) fn bounded(from: impl Read) -> std::io::Result<Option<String>> {
    let mut bytes = Vec::new();
    from.take(ANSWER_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    let fits = bytes.len() as u64 <= ANSWER_BYTES_MAX;
    Ok(fits.then(|| String::from_utf8_lossy(&bytes).into_owned()))
}

/// Reads nodes, one a line; what follows a `#` is a comment. A line that makes no sense makes the whole no answer.
pub(crate) fn parse(text: &str) -> Result<Vec<Place>, ProviderError> {
    let mut places = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if !line.is_empty() {
            places.extend(nodes(line, at + 1)?);
        }
    }
    Ok(places)
}

fn nodes(text: &str, line: usize) -> Result<Vec<Place>, ProviderError> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Ok(vec![Place { ip, port: None }]);
    }
    if let Ok(addr) = text.parse::<SocketAddr>() {
        return Ok(vec![Place { ip: addr.ip(), port: Some(addr.port()) }]);
    }
    let wrong = || ProviderError::Line { line, text: text.chars().take(80).collect() };
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, Some(port.parse::<u16>().map_err(|_| wrong())?)),
        None => (text, None),
    };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if host.is_empty() || host.len() > 253 || !host.chars().all(plain) || !host.chars().any(|c| c.is_ascii_alphabetic())
    {
        return Err(wrong());
    }
    let found =
        (host, 0).to_socket_addrs().map_err(|source| ProviderError::Host { line, host: host.into(), source })?;
    Ok(found.map(|addr| Place { ip: addr.ip(), port }).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn place(ip: &str, port: Option<u16>) -> Place {
        Place { ip: ip.parse().unwrap(), port }
    }

    #[test]
    fn a_list_has_addresses_hosts_ports_and_comments() {
        let text = "# ours\n10.0.0.1\n 10.0.0.2:80 # the second\n\nfe80::1\n[::1]:9\nlocalhost:7\r\n";
        let places = parse(text).unwrap();
        let first =
            [place("10.0.0.1", None), place("10.0.0.2", Some(80)), place("fe80::1", None), place("::1", Some(9))];
        assert_eq!(places[..4], first);
        assert!(places[4..].iter().all(|p| p.ip.is_loopback() && p.port == Some(7)) && places.len() > 4);
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn a_line_that_makes_no_sense_is_named() {
        for bad in ["10.0.0.1:x", "10.0.0.256", "a b", ":7", "host:99999", "10.0.0", "\u{fffd}", &"x".repeat(300)] {
            let error = parse(&format!("10.0.0.1\n{bad}")).unwrap_err().to_string();
            assert!(error.starts_with("line 2"), "{bad:?}: {error}");
        }
        let unknown = parse("no-such-host.invalid").unwrap_err().to_string();
        assert!(unknown.contains("no-such-host.invalid is not known"), "{unknown}");
    }

    #[test]
    fn a_list_without_end_is_none() {
        assert_eq!(bounded(std::io::repeat(b'x')).unwrap(), None);
    }
}
