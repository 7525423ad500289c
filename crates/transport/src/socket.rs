use crate::TransportError;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

/// The default port, TCP and UDP.
pub const PORT: u16 = 7474;
/// How many ports after it are tried when none was asked for.
const PORTS_TRIED: u16 = 100;

/// A port of ours, for both TCP and UDP.
pub struct Bound {
    pub(crate) tcp: TcpListener,
    pub(crate) udp: UdpSocket,
    /// What was bound.
    pub addr: SocketAddr,
}

/// Binds the address asked for, or the default port on all addresses, or the next free one.
pub fn bind(listen: Option<SocketAddr>) -> Result<Bound, TransportError> {
    if let Some(addr) = listen {
        return bind_one(addr).map_err(|source| TransportError::Listen { addr, source });
    }
    let free = (PORT..PORT + PORTS_TRIED).find_map(|port| bind_one((Ipv4Addr::UNSPECIFIED, port).into()).ok());
    free.ok_or(TransportError::NoPort { from: PORT })
}

fn bind_one(addr: SocketAddr) -> std::io::Result<Bound> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(addr), socket2::Type::STREAM, None)?;
    // A restarted node takes its port back at once.
    socket.set_reuse_address(true)?;
    socket.bind(&addr.into())?;
    socket.listen(1024)?;
    let tcp: TcpListener = socket.into();
    let addr = tcp.local_addr()?;
    let udp = UdpSocket::bind(addr)?;
    tcp.set_nonblocking(true)?;
    udp.set_nonblocking(true)?;
    Ok(Bound { tcp, udp, addr })
}

/// The address of ours that others would use: that of the interface which leads out, or loopback.
impl Bound {
    /// What to tell others when an unspecified address was bound.
    pub fn advertise(&self) -> SocketAddr {
        if !self.addr.ip().is_unspecified() {
            return self.addr;
        }
        let usable = crate::multicast::interfaces().into_iter().find(|ip| !ip.is_loopback());
        SocketAddr::new(usable.unwrap_or(Ipv4Addr::LOCALHOST).into(), self.addr.port())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_taken_is_an_error_that_names_it() {
        let held = bind(Some(([127, 0, 0, 1], 0).into())).expect("a free port");
        match bind(Some(held.addr)) {
            Err(e @ TransportError::Listen { .. }) => assert!(e.to_string().contains(&held.addr.to_string()), "{e}"),
            _ => panic!("bound twice"),
        }
    }
}
