//! burn-titan-cli
