/** The programs of docs/commands.md, run as they stand there. */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, symlinkSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import { promisify } from 'node:util'
import t from 'tap'
import { enrollDevice, newRequest, startEnrollment } from '../support/enrollment.ts'
import { invitedBroker, runBroker } from '../support/running-broker.ts'

const run = promisify(execFile)
const repository = resolve(import.meta.dirname, '../..')
const EXAMPLE = /<!-- example: (?<name>[a-z.]+) -->\n```js\n(?<text>[\s\S]*?)```/g

/** Resolves when the program has said so; rejects when it ends before. */
async function says(child: ChildProcess, text: string): Promise<void> {
  let output = ''
  const signal = AbortSignal.timeout(30_000)
  while (!output.includes(text)) {
    if (child.stdout === null) throw new TypeError('its output is piped')
    const [chunk] = await once(child.stdout, 'data', { signal })
    output += chunk
  }
}

t.test('a service sends a command, and gets the answer to it from the device that it is for', async (t) => {
  const service = await startEnrollment(t)
  const broker = await runBroker(t, await invitedBroker(service, 'broker-1'))
  const directory = t.testdir()
  const write = (name: string, text: string) => writeFileSync(join(directory, name), text)
  const page = readFileSync(join(repository, 'docs/commands.md'), 'utf8')
  for (const { groups } of page.matchAll(EXAMPLE)) write(groups?.name ?? '', groups?.text ?? '')
  symlinkSync(join(repository, 'node_modules'), join(directory, 'node_modules'))

  const lamp = await enrollDevice(service, { id: 'lamp' })
  const { csr, key } = await newRequest()
  const { certificate } = await service.admin.createService({ id: 'backend', csr })
  const chain = service.deps.authority.device.pem
  write('root.crt', service.root)
  write('lamp.crt', lamp.certificate + chain)
  write('lamp.key', lamp.key)
  write('backend.crt', certificate + chain)
  write('backend.key', key)

  const options = { cwd: directory, env: { ...process.env, BROKER: `mqtts://localhost:${broker.port}` } }
  const start = async () => {
    const device = spawn(process.execPath, ['lamp.mjs'], { ...options, stdio: ['ignore', 'pipe', 'inherit'] })
    t.teardown(() => device.kill('SIGKILL'))
    await says(device, 'ready')
    return device
  }
  const command = async (...words: string[]) =>
    JSON.parse(
      (await run(process.execPath, ['backend.mjs', ...words], { ...options, timeout: 60_000 })).stdout,
    )

  const device = await start()
  t.same(await command('lamp', 'switch', '{"on":true}'), { ok: true, on: true })
  const both = await Promise.all([command('lamp', 'switch', '{"on":false}'), command('lamp', 'explode')])
  t.same(
    both,
    [
      { ok: true, on: false },
      { ok: false, error: 'unknown command' },
    ],
    'each hears its own answer',
  )

  const gone = once(device, 'exit')
  device.kill('SIGKILL')
  await gone
  const asked = command('lamp', 'switch', '{"on":true}')
  await start()
  t.same(await asked, { ok: true, on: true }, 'a command to a device that is away waits for it')
})
