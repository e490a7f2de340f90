import { setTimeout as delay } from 'node:timers/promises'
import type { Log } from '#shared/log'
import { type Credential, isRenewalDue } from './credential.ts'

export interface RenewalDeps {
  current(): Credential
  readonly hosts: readonly string[]
  renew(credential: Credential): Promise<Credential>
  /** Puts the new pair to use. */
  renewed(credential: Credential): Promise<void> | void
  now(): number
  random(): number
  readonly log: Log
  /** How often to look, ms. */
  readonly everyMs?: number
}

/** Often enough for certificates that live some hours, and for a retry while there is still a third of a life left. */
const EVERY_MS = 10 * 60_000

/** Renews the credential when it is due, until the signal. A failure is logged and tried again; the old pair serves on. */
export async function keepRenewed(deps: RenewalDeps, signal: AbortSignal): Promise<void> {
  while (!signal.aborted) {
    try {
      await renewWhenDue(deps)
    } catch (error) {
      deps.log.warn({ err: error, notAfter: deps.current().notAfter }, 'cannot renew the certificate')
    }
    const pause = (deps.everyMs ?? EVERY_MS) * (0.5 + deps.random() / 2)
    await delay(pause, undefined, { signal, ref: false }).catch(() => {}) // only the signal rejects it
  }
}

async function renewWhenDue(deps: RenewalDeps): Promise<void> {
  const credential = deps.current()
  if (!isRenewalDue(credential, deps.hosts, deps.now())) return
  const renewed = await deps.renew(credential)
  await deps.renewed(renewed)
  deps.log.info({ notAfter: renewed.notAfter }, 'certificate renewed')
}
