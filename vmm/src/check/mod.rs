//! What this KVM can do.
