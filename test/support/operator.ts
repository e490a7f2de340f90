import type { Test } from 'tap'
import { run as runCli } from '../../operator/cli.ts'
import type { Terminal } from '../../operator/terminal.ts'
import type { RunningEnrollment } from './enrollment.ts'

export interface Ran {
  readonly status: number | null
  readonly stdout: string
  readonly stderr: string
}

/** `muster <words>` in this process, on the profile of a service; nobody sits at its terminal. */
export function operatorOf(t: Test, service: RunningEnrollment): (...words: string[]) => Promise<Ran> {
  return async (...words) => {
    const [stdout, stderr]: [string[], string[]] = [[], []]
    const terminal: Terminal = {
      out: (text) => void stdout.push(text),
      err: (text) => void stderr.push(text),
      canAsk: false,
      isScreen: false,
      ask: async () => '',
      paint: (_, text) => text,
    }
    const other = async () => t.fail(`${words.join(' ')} is not a command of the operator`)
    const programs = { enrollment: other, broker: other, sim: other, bench: other, bin: '', terminal }
    const status = await runCli([...words, '--profile', service.whereabouts.operatorProfile], programs)
    return { status, stdout: stdout.join('\n'), stderr: stderr.join('\n') }
  }
}
