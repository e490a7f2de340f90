import type { Generation } from '#shared/api/rollover'
import { MusterError } from '#shared/errors'
import type { Deps } from './deps.ts'
import type { RolloverRecord } from './registry/registry.ts'

type EndDeps = Pick<Deps, 'registry' | 'authority' | 'now'>

/** True when one of the issuing CAs can sign no more: notAfter names its last second (RFC 5280 section 4.1.2.5). */
function hasEnded({ authority, now }: Pick<EndDeps, 'authority' | 'now'>, generation: Generation): boolean {
  const ids = [generation.device, generation.infrastructure]
  return authority.cas.some(({ id, notAfter }) => ids.includes(id) && notAfter <= now())
}

/** @throws MusterError conflict: a step to CAs that have ended leads nowhere */
export function refuseEnded(
  deps: Pick<EndDeps, 'authority' | 'now'>,
  step: { generation: Generation; to: string; fix: string },
): void {
  if (!hasEnded(deps, step.generation)) return
  const { to, fix } = step
  throw new MusterError('conflict', `Cannot ${to} CAs that have ended: nothing would be signed; fix: ${fix}`)
}

/**
 * When the CAs that sign have ended in the middle of a rollover, the others sign from then on, whatever the adoption:
 * otherwise nothing would be signed any more, and a plane that is started again would have no way out.
 * @param adopted counts the adoption, for the audit log
 */
export async function turnWhenEnded(
  deps: EndDeps,
  adopted: (rollover: RolloverRecord) => Promise<{ devices: number; adopted: number }>,
): Promise<boolean> {
  const { registry, authority, now } = deps
  if (!hasEnded(deps, authority.current)) return false
  const newest = (await registry.listRollovers()).at(-1)
  if (newest === undefined || newest.endedAt !== null) return false
  const isCutOver = newest.state === 'cut-over'
  if (hasEnded(deps, isCutOver ? newest.from : newest.to)) return false
  const act = { now: now(), by: 'plane' } as const
  if (isCutOver) await registry.abortRollover(newest.id, act)
  else await registry.cutOverRollover(newest.id, await adopted(newest), act)
  await authority.follow(() => registry.listRollovers(), now())
  return true
}
