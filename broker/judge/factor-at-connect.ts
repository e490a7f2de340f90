import { factorOf } from '#shared/second-factor'
import type { AdmissionReader } from '../door/gate.ts'
import type { Link } from '../mqtt/mqtt-client.ts'
import type { Refusal } from '../refusals.ts'
import type { AdmissionRecord } from '../replica/replica.ts'
import type { Connection } from '../sessions.ts'
import type { SecondFactors } from './second-factor.ts'

/** Longest delay that `setTimeout` takes, ms; a token that lives longer is over with the next certificate anyway. */
const LONGEST_MS = 2_147_483_647

interface FactorDeps {
  now(): number
  readonly replica: AdmissionReader
}

/** True when the certificate alone is not enough. Notes it when it is. */
export function asksForFactor({ replica }: FactorDeps, { connection }: Link): boolean {
  const record = replica.record(connection.fingerprint)
  if (record === null || factorOf(record) !== null) return true
  connection.proved = null
  return false
}

/** Null when CONNECT brought what is asked for, and that has not changed meanwhile. The session ends with the token. */
export async function proveFactor(
  deps: FactorDeps & { readonly factors: SecondFactors },
  { link, password }: { readonly link: Link; readonly password: Uint8Array | null },
): Promise<Refusal | null> {
  const { connection } = link
  const asked = factorNow(deps, connection)
  if (asked === null) return { code: 'unrecorded', evidence: {} }
  const proof = await deps.factors.prove({ factor: asked, device: connection.device, password })
  if ('fault' in proof) return refusal(asked.kind, proof)
  if (factorNow(deps, connection)?.id !== asked.id) return refusal(asked.kind, { fault: 'changed' })
  connection.proved = asked.id
  if (Number.isFinite(proof.until)) endWith(connection, proof.until - deps.now())
  return null
}

/** True when the session was begun without what is asked for now. */
export function lacksFactor({ proved }: Connection, record: AdmissionRecord | null): boolean {
  const asked = record === null ? null : factorOf(record)
  return asked !== null && proved !== undefined && proved !== asked.id
}

function factorNow({ replica }: FactorDeps, { fingerprint }: Connection) {
  const record = replica.record(fingerprint)
  return record === null ? null : factorOf(record)
}

function refusal(factor: string, fault: { readonly fault: string; readonly why?: string }): Refusal {
  return { code: 'factor', evidence: { factor, ...fault } }
}

function endWith(connection: Connection, ms: number): void {
  const timer = setTimeout(
    () => {
      connection.refused ??= 'factor'
      connection.socket.destroy()
    },
    Math.max(0, Math.min(ms, LONGEST_MS)),
  )
  connection.socket.once('close', () => clearTimeout(timer))
}
