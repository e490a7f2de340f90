/** The service is killed where it syncs a file for the Nth time: strace does it, at the entry of the system call. */
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import type { Test } from 'tap'
import { type Life, liveThrough, newLife } from './enrollment-life.ts'
import { type EnrollmentPlace, serveEnrollment } from './enrollment-process.ts'
import { freePortBase, scratch } from './muster.ts'
import { faultsOf, replayFaults, Told } from './registry-invariants.ts'

const SYNCS = 'fsync,fdatasync,sync_file_range'

/** Arguments of a command that runs another one under strace and keeps its process id. @param inject as strace's -e inject= */
export function straced(inject: string, paths: readonly string[] = []): string[] {
  const at = paths.flatMap((path) => ['-P', path])
  const [calls = ''] = inject.split(':')
  const quiet = ['-D', '-f', '-qqq', '-o', '/dev/null'] // with --seccomp-bpf strace 6.1 injects no signals
  return ['strace', ...quiet, '-e', `trace=${calls}`, '-e', `inject=${inject}`, ...at]
}

/** A machine on which nothing can be traced shows nothing: that is a failure, not a pass. @throws with what to do */
export function needStrace(): void {
  const [command = '', ...args] = [...straced('brk:signal=SIGKILL'), 'true']
  const { signal, error } = spawnSync(command, args)
  if (signal === 'SIGKILL') return
  throw new Error('strace cannot inject here: install it, and allow ptrace (CAP_SYS_PTRACE)', {
    cause: error,
  })
}

/** Whether the service got to its Nth sync, and what was wrong afterwards. */
export interface Cut {
  readonly isKilled: boolean
  readonly faults: readonly string[]
}

/**
 * A new data directory, a whole life up to the stop; killed at the Nth sync, started again, and lived to its end.
 * The service must come back, and everything hold, whichever N.
 */
export async function cutAtSync(t: Test, n: number): Promise<Cut> {
  const place = { data: join(scratch(t), 'data'), portBase: await freePortBase() }
  const life = await newLife(new Told())
  const isKilled = await liveUntilKilled(t, { place, life, n })
  const again = await serveEnrollment(t, { ...place, portBase: await freePortBase() })
  const faults = faultsOf(place.data, life.told)
  await liveThrough(again, life)
  const { ok } = await again.admin.verifyAudit()
  await again.stop()
  faults.push(
    ...faultsOf(place.data, life.told),
    ...replayFaults(place.data),
    ...(ok ? [] : ['the audit head']),
  )
  return { isKilled, faults }
}

async function liveUntilKilled(
  t: Test,
  { place, life, n }: { place: EnrollmentPlace; life: Life; n: number },
): Promise<boolean> {
  const under = straced(`${SYNCS}:signal=SIGKILL:when=${n}`)
  let isUp = false
  try {
    const service = await serveEnrollment(t, { ...place, under })
    isUp = true
    const killed = service.ended.then(() => {
      throw new Error('killed')
    })
    await Promise.race([liveThrough(service, life), killed])
    await service.stop()
    return (await service.ended).signal === 'SIGKILL'
  } catch (error) {
    if (isUp || String(error).includes('SIGKILL')) return true
    throw error
  }
}
