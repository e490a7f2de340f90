import { readFileSync, rmSync, statSync } from 'node:fs'
import { join, resolve } from 'node:path'
import t from 'tap'
import { environmentFor } from '../../operator/config.ts'
import { Supervisor } from '../../operator/supervisor.ts'
import { scratch } from '../support/muster.ts'

const bin = resolve(import.meta.dirname, '../support/stand-in.mjs')

/** A supervisor of stand-ins, what it said, and what they noted. */
function supervise(t: Parameters<typeof scratch>[0]) {
  const directory = scratch(t)
  const notes = join(directory, 'notes')
  const said: string[] = []
  const heard = Promise.withResolvers<void>()
  const supervisor = new Supervisor({
    bin,
    now: Date.now,
    say: (text) => {
      said.push(text)
      if (text.endsWith('is back.')) heard.resolve()
    },
  })
  t.teardown(() => supervisor.kill())
  const spec = (name: string, ...more: string[]) => ({
    name,
    args: [name, notes, ...more],
    logFile: join(directory, `${name}.log`),
  })
  const noted = () => readFileSync(notes, 'utf8').trim().split('\n')
  return { supervisor, said, spec, noted, back: heard.promise }
}

t.test('children are stopped in reverse, each after the one before has ended', async (t) => {
  const { supervisor, spec, noted } = supervise(t)
  await supervisor.start(spec('serves'))
  await supervisor.start(spec('stops-slowly'))
  await supervisor.stop()
  t.strictSame(noted(), ['start serves', 'start stops-slowly', 'stop stops-slowly', 'stop serves'])
})

t.test('a child that cannot start is told of in its own words', async (t) => {
  const { supervisor, spec } = supervise(t)
  await t.rejects(supervisor.start(spec('fails')), {
    code: 'key_file_insecure',
    message: 'Cannot use "x": its mode is 0644',
  })
  await t.rejects(supervisor.start(spec('fails-on-stderr')), {
    message: /^Cannot open the database "x": it is damaged; see .*\.log$/,
  })
  await t.rejects(supervisor.start(spec('fails-silently')), {
    message: /^Cannot start fails-silently: it ended with status 3; see .*\.log$/,
  })
  await supervisor.stop()
})

t.test('a log is readable by its owner alone', async (t) => {
  const { supervisor, spec } = supervise(t)
  const one = spec('serves')
  await supervisor.start(one)
  t.equal(statSync(one.logFile).mode & 0o777, 0o600)
  await supervisor.stop()
})

t.test('a child that dies is started again, and that is said', async (t) => {
  const { supervisor, said, spec, noted, back } = supervise(t)
  await supervisor.start({ ...spec('dies-once'), firstArgs: ['--invite'] })
  await back
  t.match(said[0], /^The dies-once ended with status 9; starting it again\. Its log: /)
  t.strictSame(
    noted(),
    ['start dies-once --invite', 'start dies-once'],
    'what was for the first start only is left out',
  )
  await supervisor.stop()
  t.equal(noted().at(-1), 'stop dies-once')
  t.equal(said.length, 2, 'a stop is no death')
})

t.test(
  'logs that were deleted under the plane are named, and cost neither its stop nor a restart',
  async (t) => {
    const { supervisor, said, spec, noted, back } = supervise(t)
    const logs = join(scratch(t), 'logs')
    const inLogs = (name: string) => ({ ...spec(name), logFile: join(logs, `${name}.log`) })
    await supervisor.start(inLogs('serves'))
    rmSync(logs, { recursive: true })
    await supervisor.start(inLogs('dies-once'))
    await back
    t.ok(statSync(join(logs, 'dies-once.log')), 'one that is started again has a log again')
    rmSync(logs, { recursive: true })
    await supervisor.stop()
    t.strictSame(noted().slice(-2), ['stop dies-once', 'stop serves'])
    t.match(said.slice(-2), [
      /^The log of the serves, .*serves\.log, was deleted while it ran: what it said is lost\.$/,
      /^The log of the dies-once, /,
    ])
  },
)

t.test('nothing is made in the place of data that were deleted', async (t) => {
  const { supervisor, spec } = supervise(t)
  const logFile = join(scratch(t), 'data', 'logs', 'x.log')
  await t.rejects(supervisor.start({ ...spec('serves'), logFile }), { code: 'directory_unusable' })
  await supervisor.stop()
})

t.test('one that cannot start and has no log any more is told of as it ended', async (t) => {
  const { supervisor, spec } = supervise(t)
  const logs = join(scratch(t), 'logs')
  const fails = { ...spec('deletes-its-log', logs), logFile: join(logs, 'x.log') }
  await t.rejects(supervisor.start(fails), {
    message: /^Cannot start deletes-its-log: it ended with status 3; its log .*x\.log was deleted$/,
  })
  await supervisor.stop()
})

t.test('a child that does not stop is killed by the second signal', async (t) => {
  const { supervisor, spec, noted } = supervise(t)
  await supervisor.start(spec('ignores-sigterm'))
  const stopped = supervisor.stop()
  supervisor.kill()
  await stopped
  t.equal(noted()[0], 'start ignores-sigterm')
})

t.test('nothing is started any more once it is stopping', async (t) => {
  const { supervisor, spec } = supervise(t)
  await supervisor.stop()
  await t.rejects(supervisor.start(spec('serves')), { code: 'unavailable' })
  await t.rejects(supervisor.runOnce('demo', ['serves']), { code: 'unavailable' })
})

t.test('a child that is to end is not started again', async (t) => {
  const { supervisor, said, spec, noted } = supervise(t)
  t.match(await supervisor.runOnce('demo', spec('ends').args), { status: 0 })
  await supervisor.stop()
  t.strictSame(noted(), ['start ends'])
  t.strictSame(said, [])
})

t.test('no process but enrollment is given the secrets of the CA', async (t) => {
  const secrets = {
    MUSTER_CA_PASSPHRASE: 'a',
    MUSTER_CA_PASSPHRASE_FILE: 'b',
    MUSTER_PKCS11_PIN: 'c',
    MUSTER_PKCS11_PIN_FILE: 'd',
    CREDENTIALS_DIRECTORY: 'e',
  }
  t.intercept(process, 'env', { value: { PATH: '/bin', ...secrets } })
  t.strictSame(environmentFor('enrollment'), { PATH: '/bin', ...secrets })
  for (const name of ['broker', 'shown']) t.strictSame(environmentFor(name), { PATH: '/bin' }, name)
})
