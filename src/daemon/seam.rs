//! The types at the boundary to the kernel, libzmq and PHP. Unit tests replace each of them as a
//! whole, so that no other module contains code for tests only.

#[cfg(not(test))]
pub(crate) use super::{settings_reader::SettingsReader, zmq::receiver::ZmqReceiver};
#[cfg(not(test))]
pub(crate) use crate::espocrm::process::Children;
#[cfg(not(test))]
pub(crate) use crate::platform::{clock::Clock, signals::Signals};
#[cfg(not(test))]
pub(crate) use mio::net::{TcpListener, TcpStream};

#[cfg(test)]
pub(crate) use super::script::{
    Children, Clock, SettingsReader, Signals, TcpListener, TcpStream, ZmqReceiver,
};
