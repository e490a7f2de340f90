/** A broker with everything in it, in this process, for a plane of the test. */
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { PassThrough } from 'node:stream'
import type { Test } from 'tap'
import { openLog } from '#shared/log'
import { Lifecycle } from '#shared/service'
import { readConfig } from '../../broker/config.ts'
import { type RunningBroker, startBroker } from '../../broker/start.ts'
import type { RunningEnrollment } from './enrollment.ts'

export interface TestBrokerProcess extends RunningBroker {
  /** Every line that was logged. */
  readonly logged: readonly string[]
  stop(): Promise<void>
}

/** Starts a broker with these options and stops it when the test ends. @throws MusterError as `startBroker` */
export async function runBroker(
  t: Test,
  args: readonly string[],
  clock: { offsetMs: number } = { offsetMs: 0 },
): Promise<TestBrokerProcess> {
  const logged: string[] = []
  const log = openLog(
    'broker',
    'debug',
    new PassThrough().on('data', (line) => logged.push(String(line))),
  )
  const lifecycle = new Lifecycle(log)
  t.teardown(() => lifecycle.stop())
  const deps = { log, lifecycle, now: () => Date.now() + clock.offsetMs, random: Math.random }
  try {
    const broker = await startBroker(readConfig(args), deps)
    return { ...broker, logged, stop: () => lifecycle.stop() }
  } catch (error) {
    await lifecycle.stop()
    throw error
  }
}

/** Options for a broker of this plane with an invitation, on any port. */
export async function invitedBroker(service: RunningEnrollment, id: string): Promise<string[]> {
  const data = join(service.data, id)
  mkdirSync(data, { recursive: true })
  const invitation = join(data, 'invitation.json')
  writeFileSync(invitation, JSON.stringify(await service.admin.inviteBroker({ id })))
  return ['--data', data, '--invite', invitation, '--port', '0']
}
