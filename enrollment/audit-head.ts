import { X509Certificate } from 'node:crypto'
import { existsSync, readFileSync } from 'node:fs'
import { writeFileDurably } from '#shared/files'
import { verifyAs } from '#shared/pki/keys'
import type { Deps } from './deps.ts'

/** The newest entry of the audit log as it was, signed by the infrastructure CA and kept outside the database. */
interface AuditHead {
  readonly schemaVersion: 1
  readonly sequence: number
  readonly hash: string
  /** Ms since 1970. */
  readonly at: number
  /** Id of the CA whose key has signed: SHA-256 of its certificate, hex. */
  readonly issuer: string
  /** DER, base64. */
  readonly signature: string
}

/** What verifying found. */
export interface AuditCheck {
  readonly ok: boolean
  /** Sequence of the first entry that does not fit, or is missing. */
  readonly firstBad: number | null
  readonly head: {
    readonly state: 'good' | 'missing' | 'forged'
    readonly sequence: number | null
    readonly at: number | null
  }
}

type HeadDeps = Pick<Deps, 'registry' | 'authority' | 'now' | 'log'>

/** Not the beginning of any DER, so that no signature of the CA's key can be taken for one of a certificate. */
function signedOctets({ sequence, hash, at, issuer }: Omit<AuditHead, 'signature'>): Buffer {
  return Buffer.from(`muster audit head 1\n${JSON.stringify([sequence, hash, at, issuer])}\n`)
}

/**
 * Recomputes the chain, up to the head that was signed: entries that were cut off at the end, or a chain that was
 * hashed anew by somebody without the CA's key, do not fit it.
 */
export async function checkAudit(deps: HeadDeps, path: string): Promise<AuditCheck> {
  const head = readHead(path)
  const isGenuine = head !== null && isSigned(deps, head)
  const firstBad = await deps.registry.verifyAudit(isGenuine ? head : null)
  const state = head === null ? 'missing' : isGenuine ? 'good' : 'forged'
  return {
    ok: firstBad === null && state === 'good',
    firstBad,
    head: { state, sequence: head?.sequence ?? null, at: head?.at ?? null },
  }
}

/**
 * Signs the newest entry. A log that does not go on from the head that is there keeps that head, so that what is wrong
 * stays found.
 */
export async function signAuditHead(deps: HeadDeps, path: string): Promise<void> {
  const { registry, authority, log } = deps
  const newest = await registry.auditHead()
  if (newest === null) return
  const before = existsSync(path) ? readHead(path) : null
  if (before?.sequence === newest.sequence && before.hash === newest.hash) return
  if (
    existsSync(path) &&
    (before === null || !isSigned(deps, before) || !(await registry.hasAudit(before)))
  ) {
    log.error({ head: path, sequence: before?.sequence }, 'the audit log does not go on from its signed head')
    return
  }
  const { id, signer } = authority.infrastructure
  const head = {
    schemaVersion: 1,
    sequence: newest.sequence,
    hash: newest.hash,
    at: deps.now(),
    issuer: id,
  } as const
  const signature = (await signer.sign(signedOctets(head))).toString('base64')
  writeFileDurably(path, `${JSON.stringify({ ...head, signature }, null, 2)}\n`)
}

function readHead(path: string): AuditHead | null {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as AuditHead // whatever it holds, its signature is checked
  } catch {
    return null
  }
}

function isSigned({ authority }: HeadDeps, head: AuditHead): boolean {
  const issuer = authority.cas.find(({ id }) => id === head.issuer)
  if (issuer === undefined || typeof head.signature !== 'string') return false
  return verifyAs(new X509Certificate(issuer.pem).publicKey, {
    data: signedOctets(head),
    signature: Buffer.from(head.signature, 'base64'),
  })
}
