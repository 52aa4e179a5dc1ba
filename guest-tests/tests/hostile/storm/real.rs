//! The second vCPU's program: random accesses in real mode, where KVM emulates what the first does in long mode.

use guest_tests::random::Random;
use iced_x86::IcedError;
use iced_x86::code_asm::*;

use super::long::{SHARED, access_port, any_port};

/// Where it runs: a page's number is SIPI's vector.
pub(super) const ADDRESS: u32 = 0x2_0000;
/// How many accesses a round has.
const ACCESSES: usize = 400;

pub(super) struct Program {
    pub(super) code: Vec<u8>,
    /// Where in it exceptions go.
    pub(super) handler: u32,
}

/// As in long mode, BP has the place of the next access. Places are numbers there, so that the program is assembled twice: the
/// first time to learn them.
pub(super) fn program(random: &mut Random) -> Result<Program, IcedError> {
    let seed = random.next();
    let (_, places) = assemble(Random::new(seed), &[0; ACCESSES])?;
    Ok(assemble(Random::new(seed), &places)?.0)
}

fn assemble(
    mut random: Random,
    places: &[u32; ACCESSES],
) -> Result<(Program, [u32; ACCESSES]), IcedError> {
    let mut code = CodeAssembler::new(16)?;
    let (mut begin, mut handler, mut round) = (
        code.create_label(),
        code.create_label(),
        code.create_label(),
    );
    code.jmp(begin)?;
    code.set_label(&mut handler)?;
    code.mov(sp, 0xfff0u32)?;
    code.jmp(bp)?;
    code.set_label(&mut begin)?;
    code.mov(ax, SHARED >> 4)?;
    code.mov(ds, ax)?;
    code.mov(es, ax)?;
    code.mov(ax, 0x7000u32)?;
    code.mov(ss, ax)?;
    code.mov(sp, 0xfff0u32)?;
    code.set_label(&mut round)?;
    let mut nexts = Vec::new();
    for place in places {
        let mut next = code.create_label();
        code.mov(bp, *place)?;
        access(&mut code, &mut random)?;
        code.set_label(&mut next)?;
        code.nop()?;
        nexts.push(next);
    }
    code.jmp(round)?;
    // Offsets of the segment that begins at its address.
    let options = iced_x86::BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let assembled = code.assemble_options(0, options)?;
    let mut found = [0; ACCESSES];
    for (found, next) in found.iter_mut().zip(&nexts) {
        *found = assembled.label_ip(next)? as u32;
    }
    let program = Program {
        handler: assembled.label_ip(&handler)? as u32,
        code: assembled.inner.code_buffer,
    };
    Ok((program, found))
}

fn access(code: &mut CodeAssembler, random: &mut Random) -> Result<(), IcedError> {
    match random.below(6) {
        0 | 1 => {
            code.mov(ecx, random.msr())?;
            code.rdmsr()
        }
        2 => {
            let value = random.value();
            code.mov(ecx, random.msr())?;
            code.mov(eax, value as u32)?;
            code.mov(edx, (value >> 32) as u32)?;
            code.wrmsr()
        }
        // The page that the other vCPU has read meanwhile.
        3 => {
            code.mov(di, random.below(0x1000))?;
            code.mov(eax, random.next() as u32)?;
            code.mov(dword_ptr(di), eax)
        }
        4 => access_port(code, random),
        _ => {
            code.mov(dx, u32::from(any_port(random)))?;
            code.mov(cx, random.of(&[0u32, 1, 9, 1000]))?;
            code.mov(di, random.below(0x8000))?;
            code.mov(si, random.below(0x8000))?;
            match random.below(4) {
                0 => code.rep().insb(),
                1 => code.rep().insd(),
                2 => code.rep().outsb(),
                _ => code.rep().outsw(),
            }
        }
    }
}
